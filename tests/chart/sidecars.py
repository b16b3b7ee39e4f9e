"""Gatepost in somebody else's pod."""

import pathlib
import shutil
import tempfile

import helm_python as helm
import kubernetes_validate
import yaml

from rendering import CHART, KUBERNETES, NAMESPACE, config, number, over, read, render, texts, valid

SIDECAR = read(CHART / "examples" / "sidecar.yaml")
PULLED = over(SIDECAR, {"policies": {"configMapName": "", "gitSync": {"repository": "git@git.example.org:p.git", "secretName": "key"}}})
# Kubernetes has sidecars from here on.
SINCE = [version for version in KUBERNETES if number(version) >= (1, 29)]

SERVICE = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "orders", "namespace": NAMESPACE},
    "spec": {
        "selector": {"matchLabels": {"app": "orders"}},
        "template": {
            "metadata": {"labels": {"app": "orders"}},
            "spec": {
                "containers": [{"name": "orders", "image": "registry.example.org/orders", "volumeMounts": [{"name": "tls", "mountPath": "/tls"}]}],
                "volumes": [{"name": "tls", "secret": {"secretName": "orders-tls"}}],
            },
        },
    },
}


def _merged(base, patch):
    """As a strategic merge does it, as far as the patch goes: lists whose items have names grow."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {key: _merged(base[key], patch[key]) if key in base and key in patch else (base | patch)[key] for key in base | patch}
    if isinstance(base, list):
        taken = {item["name"] for item in base} & {item["name"] for item in patch}
        assert not taken, f"the service has these already: {taken}"
        return base + patch
    return patch


def _patched(values):
    patch = yaml.safe_load(render(values)["ConfigMap", "gatepost-sidecar"]["data"]["patch.yaml"])
    assert all(patch[key] == SERVICE[key] for key in ("apiVersion", "kind"))
    return _merged(SERVICE, patch)


def a_sidecar_brings_its_files_and_no_pod_of_its_own():
    for values in (SIDECAR, PULLED):
        manifests = render(values)
        valid(manifests, SINCE)
        assert {kind for kind, _ in manifests} == {"ConfigMap", "Certificate"}, set(manifests)
    certificate = render(SIDECAR)["Certificate", "gatepost"]["spec"]
    assert certificate["dnsNames"] == ["localhost"] and certificate["ipAddresses"] == ["127.0.0.1"]


def the_patch_makes_a_pod_that_kubernetes_takes():
    for values in (SIDECAR, PULLED):
        patched = _patched(values)
        for version in SINCE:
            kubernetes_validate.validate(patched, version, strict=True)
        template = patched["spec"]["template"]
        spec = template["spec"]
        assert [container["name"] for container in spec["containers"]] == ["orders"]
        sidecars = {container["name"]: container for container in spec["initContainers"]}
        assert all(container["restartPolicy"] == "Always" for container in sidecars.values())
        # Gatepost starts after whoever pulls its policies, and is there before the service.
        assert list(sidecars)[-1] == "gatepost"
        mounted = {mount["name"] for container in sidecars.values() for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in spec["volumes"]}
        # In a pod with volumes of its own, none is taken for another.
        assert all(volume["name"].startswith("gatepost-") for volume in spec["volumes"][1:])
        for container in sidecars.values():
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True and context["capabilities"] == {"drop": ["ALL"]}
            assert context["runAsNonRoot"] is True and context["runAsUser"] in (65532, 65533)
        assert "checksum/gatepost-config" in template["metadata"]["annotations"]


def the_patch_says_whose_it_is_where_that_is_said():
    patch = lambda values: yaml.safe_load(render(values)["ConfigMap", "gatepost-sidecar"]["data"]["patch.yaml"])
    # Kustomize wants these three.
    found = patch(over(SIDECAR, {"sidecar": {"workload": {"kind": "StatefulSet"}}}))
    assert (found["apiVersion"], found["kind"], found["metadata"]) == ("apps/v1", "StatefulSet", {"name": "orders"})
    assert set(patch(over(SIDECAR, {"sidecar": {"workload": None}}))) == {"spec"}
    assert set(patch(over(SIDECAR, {"sidecar": {"workload": {"name": ""}}}))) == {"spec"}


def a_sidecar_is_asked_by_its_own_pod_alone():
    server = config(SIDECAR)["server"]
    assert server["listen"] == "127.0.0.1:8443"
    # Kubelets look at a pod from outside.
    assert server["ops_listen"] == "0.0.0.0:9443"


def nothing_is_in_the_way_of_the_service():
    ports = {"grpc": 18443, "ops": 19443, "admin": 18444, "gitSync": 19444}
    operators = [{"spiffe_id": "spiffe://example.org/ops/anna", "name": "anna", "may": ["RevokeToken"]}]
    values = over(PULLED, {"sidecar": {"ports": ports}, "admin": {"secretName": "a"}, "config": {"admin": {"operators": operators}}})
    server, admin = config(values)["server"], config(values)["admin"]
    assert (server["listen"], server["ops_listen"]) == ("127.0.0.1:18443", "0.0.0.0:19443")
    assert admin["listen"] == "127.0.0.1:18444"
    containers = {container["name"]: container for container in _patched(values)["spec"]["template"]["spec"]["initContainers"]}
    listening = {port["name"]: port["containerPort"] for container in containers.values() for port in container["ports"]}
    assert listening == {"gatepost-grpc": 18443, "gatepost-ops": 19443, "gatepost-admin": 18444, "gatepost-git": 19444}
    # A port's name has 15 characters at most, and probes go by it.
    assert all(len(name) <= 15 for name in listening)
    assert containers["gatepost"]["readinessProbe"]["httpGet"]["port"] == "gatepost-ops"
    pulls = containers["gatepost-git-sync"]
    assert pulls["startupProbe"]["httpGet"]["port"] == "gatepost-git"
    assert {"name": "GITSYNC_HTTP_BIND", "value": ":19444"} in pulls["env"]
    assert "localhost:18443" in texts(values)["NOTES.txt"]


PARENT = """
apiVersion: apps/v1
kind: Deployment
metadata: { name: orders, namespace: {{ .Release.Namespace }} }
spec:
  selector: { matchLabels: { app: orders } }
  template:
    metadata:
      labels: { app: orders }
      annotations:
        {{- include "gatepost.sidecar.annotations" .Subcharts.gatepost | nindent 8 }}
    spec:
      initContainers:
        {{- include "gatepost.sidecar.containers" .Subcharts.gatepost | nindent 8 }}
      containers: [{ name: orders, image: registry.example.org/orders }]
      volumes:
        {{- include "gatepost.sidecar.volumes" .Subcharts.gatepost | nindent 8 }}
"""


def a_chart_that_depends_on_this_one_includes_it():
    guide = (CHART.parent.parent / "docs" / "kubernetes.md").read_text()
    with tempfile.TemporaryDirectory() as folder:
        parent = pathlib.Path(folder) / "orders"
        (parent / "templates").mkdir(parents=True)
        (parent / "Chart.yaml").write_text("apiVersion: v2\nname: orders\nversion: 1.0.0\ndependencies: [{ name: gatepost, version: '*' }]\n")
        (parent / "templates" / "deployment.yaml").write_text(PARENT)
        shutil.copytree(CHART, parent / "charts" / "gatepost")
        with helm.Chart.load(parent) as chart:
            rendered = chart.render({"gatepost": SIDECAR}, name="orders", namespace=NAMESPACE)
    deployment = yaml.safe_load(rendered["orders/templates/deployment.yaml"])
    for version in SINCE:
        kubernetes_validate.validate(deployment, version, strict=True)
    spec = deployment["spec"]["template"]["spec"]
    settings = yaml.safe_load(rendered["orders/charts/gatepost/templates/configmap.yaml"])
    [mounted] = [volume["configMap"]["name"] for volume in spec["volumes"] if volume["name"] == "gatepost-config"]
    assert mounted == settings["metadata"]["name"] == "orders-gatepost"
    # The guide shows these very lines.
    for line in PARENT.splitlines():
        assert "include" not in line or line.split("|")[0].strip() in guide, line


CASES = [
    a_sidecar_brings_its_files_and_no_pod_of_its_own,
    the_patch_makes_a_pod_that_kubernetes_takes,
    the_patch_says_whose_it_is_where_that_is_said,
    a_sidecar_is_asked_by_its_own_pod_alone,
    nothing_is_in_the_way_of_the_service,
    a_chart_that_depends_on_this_one_includes_it,
]
