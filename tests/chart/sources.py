"""Where certificates and policies come from: each way mounts what the settings name."""

from rendering import CHART, MINIMAL, config, gatepost, minimal, pod, read, render, valid, volume

MANAGED = {"certManager": {"enabled": True, "issuerRef": {"name": "workloads"}}, "secretName": ""}


def _files(projected):
    """Where each file of a projected volume comes from."""
    found = {}
    for source in projected["projected"]["sources"]:
        [(kind, content)] = source.items()
        for item in content["items"]:
            found[item["path"]] = (kind, content["name"], item["key"])
    return found


def certificate_key_and_authorities_come_from_one_secret():
    server = config(MINIMAL)["server"]
    places = [server[key] for key in ("certificate", "private_key", "client_ca")]
    assert places == [f"/etc/gatepost/tls/{file}" for file in ("tls.crt", "tls.key", "ca.crt")]
    tls = volume(pod(MINIMAL), "tls")
    assert tls["projected"]["defaultMode"] == 0o440
    assert _files(tls) == {file: ("secret", "gatepost-tls", file) for file in ("tls.crt", "tls.key", "ca.crt")}
    assert {"name": "tls", "mountPath": "/etc/gatepost/tls", "readOnly": True} in gatepost(pod(MINIMAL))["volumeMounts"]


def authorities_come_from_elsewhere_where_that_is_said():
    for source, kind in (("secretName", "secret"), ("configMapName", "configMap")):
        tls = volume(pod(minimal(tls={"clientCA": {source: "authorities", "key": "bundle.pem"}})), "tls")
        assert _files(tls)["ca.crt"] == (kind, "authorities", "bundle.pem")
        assert _files(tls)["tls.key"] == ("secret", "gatepost-tls", "tls.key")


def cert_manager_makes_a_certificate_for_every_name_of_the_services():
    values = minimal(tls=MANAGED | {"certManager": MANAGED["certManager"] | {"dnsNames": ["pdp.example.org"]}})
    manifests = render(values)
    valid(manifests)
    spec = manifests["Certificate", "gatepost"]["spec"]
    assert spec["issuerRef"] == {"name": "workloads", "kind": "Issuer", "group": "cert-manager.io"}
    assert spec["privateKey"]["rotationPolicy"] == "Always"
    assert {"server auth", "client auth"} <= set(spec["usages"])
    for name in ("gatepost", "gatepost-pods"):
        assert ("Service", name) in manifests
        assert {f"{name}.authz.svc", f"{name}.authz.svc.cluster.local", f"{name}.authz", name} <= set(spec["dnsNames"])
    assert "pdp.example.org" in spec["dnsNames"] and "localhost" not in spec["dnsNames"]
    files = _files(volume(pod(values), "tls"))
    assert {source[1] for source in files.values()} == {spec["secretName"]} == {"gatepost-tls"}
    # The alert about expiry comes a week before the end: renewal has to be tried long before.
    assert spec["renewBefore"] == "720h"


def the_workload_api_needs_no_secret():
    values = minimal(tls={"secretName": "", "spiffe": {"enabled": True}})
    server = config(values)["server"]
    assert server["workload_api"] == "unix:///run/spiffe/spire-agent.sock"
    assert not {"certificate", "private_key", "client_ca"} & set(server)
    spec = pod(values)
    assert "tls" not in {volume["name"] for volume in spec["volumes"]}
    assert volume(spec, "spiffe") == {"csi": {"driver": "csi.spiffe.io", "readOnly": True}}
    assert {"name": "spiffe", "mountPath": "/run/spiffe", "readOnly": True} in gatepost(spec)["volumeMounts"]
    host = {"volume": {"csi": None, "hostPath": {"path": "/run/spire/agent-sockets"}}, "socket": "api.sock", "enabled": True}
    values = minimal(tls={"secretName": "", "spiffe": host})
    assert volume(pod(values), "spiffe") == {"hostPath": {"path": "/run/spire/agent-sockets"}}
    assert config(values)["server"]["workload_api"] == "unix:///run/spiffe/api.sock"
    valid(render(values))


def the_admin_listener_has_its_own_certificates_and_its_own_service():
    assert ("Service", "gatepost-admin") not in render(MINIMAL)
    operators = [{"spiffe_id": "spiffe://example.org/ops/anna", "name": "anna", "may": ["RevokeToken"]}]
    values = minimal(admin={"secretName": "gatepost-admin-tls"}, config={"admin": {"operators": operators}, "revocation": {"file": "/shared/revocations.jsonl"}})
    manifests = render(values)
    valid(manifests)
    settings = config(values)
    assert settings["admin"]["operators"] == operators
    assert settings["admin"]["client_ca"] == "/etc/gatepost/admin-tls/ca.crt" != settings["server"]["client_ca"]
    assert volume(pod(values), "admin-tls") == {"secret": {"secretName": "gatepost-admin-tls", "defaultMode": 0o440}}
    container = gatepost(pod(values))
    assert {"name": "admin-tls", "mountPath": "/etc/gatepost/admin-tls", "readOnly": True} in container["volumeMounts"]
    assert {"name": "admin", "containerPort": 8444, "protocol": "TCP"} in container["ports"]
    assert [port["name"] for port in manifests["Service", "gatepost"]["spec"]["ports"]] == ["grpc"]
    assert [port["name"] for port in manifests["Service", "gatepost-admin"]["spec"]["ports"]] == ["admin"]


def policies_come_from_a_config_map_that_is_there():
    assert volume(pod(MINIMAL), "policies") == {"configMap": {"name": "shop-policies"}}
    assert config(MINIMAL)["policies"]["directory"] == "/etc/gatepost/policies"
    assert ("ConfigMap", "gatepost-policies") not in render(MINIMAL)


def policies_come_from_the_values():
    values = read(CHART / "examples" / "cert-manager.yaml")
    assert render(values)["ConfigMap", "gatepost-policies"]["data"] == values["policies"]["files"]
    assert volume(pod(values), "policies") == {"configMap": {"name": "gatepost-policies"}}


def policies_come_from_an_image():
    image = {"reference": "registry.example.org/policies:7", "path": "shop/live"}
    values = minimal(policies={"configMapName": "", "image": image})
    found = volume(pod(values), "policies")
    assert found == {"image": {"reference": "registry.example.org/policies:7", "pullPolicy": "IfNotPresent"}}
    assert config(values)["policies"]["directory"] == "/etc/gatepost/policies/shop/live"


def _pulled(**git):
    values = minimal(policies={"configMapName": "", "gitSync": git})
    spec = pod(values)
    [sidecar] = spec["initContainers"]
    return values, spec, sidecar, {variable["name"]: variable for variable in sidecar["env"]}


def policies_are_pulled_by_a_sidecar_that_is_up_once_they_are_there():
    values, spec, sidecar, env = _pulled(repository="https://git.example.org/policies.git", ref="live", path="shop")
    # A sidecar in the sense of Kubernetes: Gatepost starts when its startup probe holds, which is after the first pull.
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["httpGet"] == sidecar["livenessProbe"]["httpGet"] == {"path": "/", "port": "git"}
    [port] = sidecar["ports"]
    assert port["name"] == "git" and env["GITSYNC_HTTP_BIND"]["value"] == f":{port['containerPort']}"
    assert sidecar["image"].startswith("registry.k8s.io/git-sync/git-sync:v4.") and sidecar["imagePullPolicy"] == "IfNotPresent"
    assert env["GITSYNC_REPO"]["value"] == "https://git.example.org/policies.git"
    assert env["GITSYNC_REF"]["value"] == "live" and env["GITSYNC_MAX_FAILURES"]["value"] == "-1"
    # It swaps a link in the folder above the one that is read, so that no two commits are mixed.
    mounts = {mount["name"]: mount for mount in sidecar["volumeMounts"]}
    assert mounts["policies"]["mountPath"] == env["GITSYNC_ROOT"]["value"]
    assert config(values)["policies"]["directory"] == f"/etc/gatepost/policies/{env['GITSYNC_LINK']['value']}/shop"
    assert volume(spec, "policies") == {"emptyDir": {}}
    own = {mount["name"]: mount for mount in gatepost(spec)["volumeMounts"]}
    assert own["policies"]["readOnly"] is True
    assert "git-secret" not in mounts and "GITSYNC_PASSWORD_FILE" not in env
    assert config(_pulled(repository="https://git.example.org/p.git")[0])["policies"]["directory"] == "/etc/gatepost/policies/current"


def the_repository_is_told_who_pulls():
    _, spec, sidecar, env = _pulled(repository="https://git.example.org/policies.git", secretName="pull")
    assert env["GITSYNC_USERNAME"]["valueFrom"] == {"secretKeyRef": {"name": "pull", "key": "username"}}
    assert env["GITSYNC_PASSWORD_FILE"]["value"] == "/etc/git-secret/password"
    assert volume(spec, "git-secret") == {"secret": {"secretName": "pull", "defaultMode": 0o440}}
    _, spec, sidecar, env = _pulled(repository="git@git.example.org:policies.git", secretName="pull")
    assert env["GITSYNC_SSH_KEY_FILE"]["value"] == "/etc/git-secret/ssh"
    assert env["GITSYNC_SSH_KNOWN_HOSTS_FILE"]["value"] == "/etc/git-secret/known_hosts"
    assert "GITSYNC_USERNAME" not in env
    assert {"name": "git-secret", "mountPath": "/etc/git-secret", "readOnly": True} in sidecar["volumeMounts"]
    # Nobody's secret is Gatepost's to read.
    assert "git-secret" not in {mount["name"] for mount in gatepost(spec)["volumeMounts"]}
    # ssh wants to know the user that it runs as.
    assert sidecar["securityContext"]["runAsUser"] == 65533


def whoever_pulls_can_be_told_more():
    variable = {"name": "GITSYNC_SUBMODULES", "value": "off"}
    image = {"repository": "registry.example.org/git-sync", "digest": "sha256:" + "ab" * 32, "pullPolicy": "Always"}
    limits = {"memory": "1Gi"}
    git = {"extraEnv": [variable], "image": image, "runAsUser": None, "resources": {"limits": limits}, "period": "5m"}
    values, _, sidecar, env = _pulled(repository="https://git.example.org/p.git", **git)
    valid(render(values))
    assert variable in sidecar["env"] and env["GITSYNC_PERIOD"]["value"] == "5m"
    assert sidecar["image"] == "registry.example.org/git-sync@sha256:" + "ab" * 32 and sidecar["imagePullPolicy"] == "Always"
    assert sidecar["resources"]["limits"] == limits and "runAsUser" not in sidecar["securityContext"]


CASES = [
    certificate_key_and_authorities_come_from_one_secret,
    authorities_come_from_elsewhere_where_that_is_said,
    cert_manager_makes_a_certificate_for_every_name_of_the_services,
    the_workload_api_needs_no_secret,
    the_admin_listener_has_its_own_certificates_and_its_own_service,
    policies_come_from_a_config_map_that_is_there,
    policies_come_from_the_values,
    policies_come_from_an_image,
    policies_are_pulled_by_a_sidecar_that_is_up_once_they_are_there,
    the_repository_is_told_who_pulls,
    whoever_pulls_can_be_told_more,
]
