"""The Helm chart renders to manifests that Kubernetes takes, keeps its promises about the pod, and refuses to render
without what it can't guess. Needs helm-python-sdk and kubernetes-validate; no cluster.

    python tests/chart.py
"""

import copy
import json
import pathlib
import sys

import helm_python as helm
import kubernetes_validate
import yaml

CHART = pathlib.Path(__file__).resolve().parent.parent / "helm" / "gatepost"
KUBERNETES = ["1.27", "1.37"]

VALUES = {
    "image": {"repository": "registry.example/gatepost"},
    "tls": {"secretName": "gatepost-tls"},
    "policies": {"configMapName": "shop-policies"},
    "config": {
        "identity": {"trust_domains": ["example.org"]},
        "callers": [
            {
                "spiffe_id": "spiffe://example.org/ns/shop/sa/orders",
                "name": "orders",
                "resource_types": ["Order"],
                "actions": ["Order.*"],
            }
        ],
        "issuers": [
            {
                "issuer": "https://idp.example.org",
                "audiences": ["gatepost"],
                "jwks_url": "https://idp.example.org/jwks.json",
                "principal": {"type": "User"},
            }
        ],
    },
}

# What is taken away, and the key that the refusal must name.
REQUIRED = [
    (["image", "repository"], "image.repository"),
    (["tls", "secretName"], "tls.secretName"),
    (["policies", "configMapName"], "policies.configMapName"),
    (["config", "identity", "trust_domains"], "config.identity.trust_domains"),
    (["config", "callers"], "config.callers"),
    (["config", "issuers", 0, "audiences"], "config.issuers[0].audiences"),
]


def render(values, name="gatepost"):
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(values, name=name, namespace="authz")
    manifests = [yaml.safe_load(text) for path, text in rendered.items() if path.endswith(".yaml") and text.strip()]
    # Some are the second or third of their kind.
    def kind(manifest):
        name = manifest["metadata"]["name"]
        first = {"admin": "Admin", "pods": "Pods", "dashboard": "Dashboard"}
        return first.get(name.rsplit("-", 1)[-1], "") + manifest["kind"]

    return {kind(manifest): manifest for manifest in manifests}


def lints():
    report = helm.lint(CHART, VALUES, strict=True, namespace="authz")
    bad = [message for message in report["messages"] if message["severity"] >= 2]
    assert not bad and not report["errors"], report


def manifests_are_valid():
    manifests = render(VALUES)
    expected = {"ConfigMap", "StatefulSet", "PodDisruptionBudget", "Service", "PodsService", "ServiceAccount"}
    assert set(manifests) == expected, set(manifests)
    for manifest in manifests.values():
        for version in KUBERNETES:
            kubernetes_validate.validate(manifest, version, strict=True)


def the_pod_has_no_more_rights_than_it_needs():
    deployment = render(VALUES)["StatefulSet"]
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["replicas"] == 2
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "ops"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "ops"}
        writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
        assert writable == ["/var/lib/gatepost"], writable


def the_file_is_what_was_said_with_the_places_that_the_chart_mounts():
    config = yaml.safe_load(render(VALUES)["ConfigMap"]["data"]["gatepost.yaml"])
    assert config["callers"] == VALUES["config"]["callers"]
    assert config["issuers"] == VALUES["config"]["issuers"]
    assert config["policies"]["directory"] == "/etc/gatepost/policies"
    assert config["server"]["certificate"] == "/etc/gatepost/tls/tls.crt"
    assert config["server"]["drain_delay"] == "5s"
    # Nobody moves the listeners away from the ports that the probes and the Service use.
    moved = copy.deepcopy(VALUES)
    moved["config"]["server"] = {"listen": "127.0.0.1:1", "reflection": True}
    config = yaml.safe_load(render(moved)["ConfigMap"]["data"]["gatepost.yaml"])
    assert config["server"]["listen"] == "0.0.0.0:8443"
    assert config["server"]["reflection"] is True


def the_spool_has_a_volume_that_outlives_its_pod_or_says_that_it_has_none():
    manifests = render(VALUES)
    config = yaml.safe_load(manifests["ConfigMap"]["data"]["gatepost.yaml"])
    assert config["audit"]["spool"]["directory"] == "/var/lib/gatepost/audit"
    assert config["audit"]["sinks"] == [{"name": "stdout", "stdout": {}}]
    spec = manifests["StatefulSet"]["spec"]
    [claim] = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "audit"
    assert claim["spec"]["resources"]["requests"]["storage"] == "6Gi"
    assert spec["serviceName"] == manifests["PodsService"]["metadata"]["name"]
    assert manifests["PodsService"]["spec"]["clusterIP"] == "None"
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}

    ephemeral = render(VALUES | {"audit": {"volume": {"kind": "ephemeral"}}})
    assert "StatefulSet" not in ephemeral and "PodsService" not in ephemeral
    kubernetes_validate.validate(ephemeral["Deployment"], KUBERNETES[-1], strict=True)
    volumes = {volume["name"]: volume for volume in ephemeral["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["audit"]["emptyDir"] == {"sizeLimit": "6Gi"}
    try:
        render(VALUES | {"audit": {"volume": {"kind": "none"}}})
    except helm.HelmError as error:
        assert "audit.volume.kind must be persistent or ephemeral" in str(error), error
    else:
        raise AssertionError("rendered without a volume")


def the_keys_of_the_trail_are_mounted_from_a_secret():
    values = copy.deepcopy(VALUES) | {"audit": {"secretName": "gatepost-audit-keys"}}
    key = "/etc/gatepost/audit/checkpoint.pem"
    values["config"]["audit"] = {"checkpoints": {"key_file": key}, "spool": {"max_bytes": "2GiB", "directory": "/tmp"}}
    manifests = render(values)
    audit = yaml.safe_load(manifests["ConfigMap"]["data"]["gatepost.yaml"])["audit"]
    assert audit["checkpoints"]["key_file"] == key
    assert audit["spool"] == {"max_bytes": "2GiB", "directory": "/var/lib/gatepost/audit"}
    pod = manifests["StatefulSet"]["spec"]["template"]["spec"]
    assert {"name": "audit-keys", "mountPath": "/etc/gatepost/audit", "readOnly": True} in pod["containers"][0]["volumeMounts"]
    assert any(volume.get("secret", {}).get("secretName") == "gatepost-audit-keys" for volume in pod["volumes"])


def the_dashboard_comes_when_it_is_asked_for():
    assert "DashboardConfigMap" not in render(VALUES)
    found = render(VALUES | {"dashboard": {"enabled": True}})["DashboardConfigMap"]
    kubernetes_validate.validate(found, KUBERNETES[-1], strict=True)
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    dashboard = json.loads(found["data"]["gatepost.json"])
    assert dashboard == json.loads((CHART / "dashboards" / "gatepost.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len(panels) > 20 and all(panel["targets"] for panel in panels)
    # No panel lies on another.
    taken = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def files_that_the_settings_name_can_be_mounted():
    volume = {"name": "keys", "secret": {"secretName": "issuer-keys"}}
    mount = {"name": "keys", "mountPath": "/etc/gatepost/keys", "readOnly": True}
    deployment = render(VALUES | {"extraVolumes": [volume], "extraVolumeMounts": [mount]})["StatefulSet"]
    kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)
    pod = deployment["spec"]["template"]["spec"]
    assert volume in pod["volumes"]
    assert mount in pod["containers"][0]["volumeMounts"]


ADMIN = {"operators": [{"spiffe_id": "spiffe://example.org/ops/anna", "name": "anna", "may": ["RevokeToken"]}]}


def the_admin_listener_has_its_own_certificates_and_its_own_service():
    assert "AdminService" not in render(VALUES)
    values = copy.deepcopy(VALUES) | {"admin": {"secretName": "gatepost-admin-tls"}}
    values["config"]["admin"] = ADMIN
    manifests = render(values)
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, KUBERNETES[-1], strict=True)
    config = yaml.safe_load(manifests["ConfigMap"]["data"]["gatepost.yaml"])
    assert config["admin"]["operators"] == ADMIN["operators"]
    assert config["admin"]["client_ca"] == "/etc/gatepost/admin-tls/ca.crt" != config["server"]["client_ca"]
    assert [port["name"] for port in manifests["Service"]["spec"]["ports"]] == ["grpc"]
    assert [port["name"] for port in manifests["AdminService"]["spec"]["ports"]] == ["admin"]
    del values["admin"]
    try:
        render(values)
    except helm.HelmError as error:
        assert "admin.secretName is missing: " in str(error), error
    else:
        raise AssertionError("rendered an admin listener without certificates")


def certificates_from_the_workload_api_need_no_secret():
    values = copy.deepcopy(VALUES)
    del values["tls"]
    values["config"]["server"] = {"workload_api": "unix:///run/spire/agent.sock"}
    manifests = render(values)
    kubernetes_validate.validate(manifests["StatefulSet"], KUBERNETES[-1], strict=True)
    server = yaml.safe_load(manifests["ConfigMap"]["data"]["gatepost.yaml"])["server"]
    assert server["workload_api"] == "unix:///run/spire/agent.sock"
    assert not {"certificate", "private_key", "client_ca"} & set(server)
    pod = manifests["StatefulSet"]["spec"]["template"]["spec"]
    assert "tls" not in {volume["name"] for volume in pod["volumes"]}


def another_config_is_another_pod():
    def checksum(values):
        return render(values)["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]["gatepost/config-checksum"]

    other = copy.deepcopy(VALUES)
    other["config"]["identity"]["trust_domains"] = ["example.com"]
    assert checksum(VALUES) != checksum(other)


def one_replica_needs_no_disruption_budget():
    assert "PodDisruptionBudget" not in render(VALUES | {"replicas": 1})


def what_is_missing_is_refused_by_its_key():
    for path, key in REQUIRED:
        values = copy.deepcopy(VALUES)
        section = values
        for step in path[:-1]:
            section = section[step]
        del section[path[-1]]
        try:
            render(values)
        except helm.HelmError as error:
            assert f"{key} is missing: " in str(error), f"{key}: {error}"
        else:
            raise AssertionError(f"rendered without {key}")


CASES = [
    lints,
    manifests_are_valid,
    the_pod_has_no_more_rights_than_it_needs,
    the_file_is_what_was_said_with_the_places_that_the_chart_mounts,
    the_spool_has_a_volume_that_outlives_its_pod_or_says_that_it_has_none,
    the_keys_of_the_trail_are_mounted_from_a_secret,
    the_dashboard_comes_when_it_is_asked_for,
    files_that_the_settings_name_can_be_mounted,
    the_admin_listener_has_its_own_certificates_and_its_own_service,
    certificates_from_the_workload_api_need_no_secret,
    another_config_is_another_pod,
    one_replica_needs_no_disruption_budget,
    what_is_missing_is_refused_by_its_key,
]

if __name__ == "__main__":
    failed = 0
    for case in CASES:
        try:
            case()
            print(f"chart: {case.__name__} ... ok")
        except Exception as error:  # every case is told, not the first alone
            failed += 1
            print(f"chart: {case.__name__} ... FAILED: {type(error).__name__}: {error}")
    print(f"chart: {len(CASES) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
