"""How many pods there are, where they are, and when they are others."""

from rendering import MINIMAL, config, minimal, over, pod, render, valid, workload


def two_pods_run_and_one_may_go():
    manifests = render(MINIMAL)
    assert manifests["StatefulSet", "gatepost"]["spec"]["replicas"] == 2
    budget = manifests["PodDisruptionBudget", "gatepost"]["spec"]
    assert budget["maxUnavailable"] == 1 and budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["selector"] == manifests["StatefulSet", "gatepost"]["spec"]["selector"]


def one_pod_needs_no_disruption_budget():
    budgets = lambda **change: [kind for kind, _ in render(minimal(**change)) if kind == "PodDisruptionBudget"]
    assert budgets(replicas=1) == []
    assert budgets(podDisruptionBudget={"enabled": False}) == []
    # What scales may be more than one at any time.
    assert len(budgets(replicas=1, autoscaling={"enabled": True})) == 1
    share = render(minimal(podDisruptionBudget={"maxUnavailable": "25%"}))["PodDisruptionBudget", "gatepost"]
    assert share["spec"]["maxUnavailable"] == "25%"


def an_autoscaler_alone_says_how_many():
    for kind in ("persistent", "ephemeral"):
        scaling = {"enabled": True, "minReplicas": 3, "targetMemoryUtilizationPercentage": 70}
        values = minimal(autoscaling=scaling, audit={"volume": {"kind": kind}})
        manifests = render(values)
        valid(manifests)
        found = workload(values)
        # Or every upgrade would set the number back.
        assert "replicas" not in found["spec"]
        spec = manifests["HorizontalPodAutoscaler", "gatepost"]["spec"]
        assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": found["kind"], "name": found["metadata"]["name"]}
        assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 10)
        targets = {metric["resource"]["name"]: metric["resource"]["target"]["averageUtilization"] for metric in spec["metrics"]}
        assert targets == {"cpu": 60, "memory": 70}
    assert not any(kind == "HorizontalPodAutoscaler" for kind, _ in render(MINIMAL))


def pods_are_spread_over_hosts_and_zones():
    constraints = pod(MINIMAL)["topologySpreadConstraints"]
    assert [constraint["topologyKey"] for constraint in constraints] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    labels = workload(MINIMAL)["spec"]["template"]["metadata"]["labels"]
    for constraint in constraints:
        assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
        assert constraint["labelSelector"]["matchLabels"].items() <= labels.items()
    assert not pod(minimal(topologySpreadConstraints=[]))["topologySpreadConstraints"]
    own = [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]
    assert pod(minimal(topologySpreadConstraints=own))["topologySpreadConstraints"] == own


def _checksum(values):
    annotations = workload(values)["spec"]["template"]["metadata"]["annotations"]
    [name] = [name for name in annotations if name.startswith("checksum/")]
    assert name == "checksum/config"
    return annotations[name]


def only_what_is_read_at_start_makes_other_pods():
    base = minimal(policies={"configMapName": "", "files": {"a.cedar": "permit (principal, action, resource);"}})
    before = _checksum(base)
    assert _checksum(over(base, {"config": {"identity": {"trust_domains": ["example.com"]}}})) != before
    # These are taken as they change, so the pods stay.
    for change in [
        {"policies": {"files": {"a.cedar": "forbid (principal, action, resource);"}}},
        {"tls": {"secretName": "another"}},
        {"podLabels": {"a": "b"}},
        {"replicas": 5},
    ]:
        assert _checksum(over(base, change)) == before, change
    # A new policy, and nothing else: the pods are word for word the same.
    other = over(base, {"policies": {"files": {"b.cedar": "// nothing"}}})
    assert workload(other) == workload(base)


def a_pod_has_time_to_drain():
    spec, server = pod(MINIMAL), {"drain_delay": "5s", "drain_timeout": "20s"}
    assert spec["terminationGracePeriodSeconds"] > 25
    assert {key: config(MINIMAL)["server"][key] for key in server} == server


CASES = [
    two_pods_run_and_one_may_go,
    one_pod_needs_no_disruption_budget,
    an_autoscaler_alone_says_how_many,
    pods_are_spread_over_hosts_and_zones,
    only_what_is_read_at_start_makes_other_pods,
    a_pod_has_time_to_drain,
]
