"""What runs, and with which rights."""

import yaml

from rendering import CHART, KUBERNETES, MINIMAL, gatepost, minimal, over, pod, render, valid, volume, workload

# Each sets something of its own; together they are every container and every volume that the chart can make.
EVERY_POD = {
    "with a Secret": {},
    "with cert-manager": {"tls": {"secretName": "", "certManager": {"enabled": True, "issuerRef": {"name": "workloads"}}}},
    "with SPIRE": {"tls": {"secretName": "", "spiffe": {"enabled": True}}},
    "with git": {"policies": {"configMapName": "", "gitSync": {"repository": "https://git.example.org/p.git"}}},
    "with an audit volume of the pod's": {"audit": {"volume": {"kind": "ephemeral"}}},
}


def every_container_has_no_more_rights_than_it_needs():
    for name, change in EVERY_POD.items():
        spec = pod(over(MINIMAL, change))
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(spec), name
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True and security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 65532, name
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True and context["runAsNonRoot"] is True, name
            assert context["allowPrivilegeEscalation"] is False and context["privileged"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
            assert container["resources"]["limits"]["memory"] and "cpu" not in container["resources"]["limits"], name


# What the Pod Security Standard `restricted` lets a pod mount.
RESTRICTED = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def every_pod_fits_into_a_restricted_namespace():
    for name, change in EVERY_POD.items():
        spec = pod(over(MINIMAL, change))
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= RESTRICTED, (name, kinds)
        for container in spec["containers"] + spec.get("initContainers", []):
            assert not any("hostPort" in port for port in container["ports"]), name
            # 0 is root, and Kubernetes looks at the number.
            assert container["securityContext"].get("runAsUser", spec["securityContext"]["runAsUser"]) > 0, name


def gatepost_writes_to_its_spool_and_nowhere_else():
    for name, change in EVERY_POD.items():
        mounts = gatepost(pod(over(MINIMAL, change)))["volumeMounts"]
        writable = [mount["mountPath"] for mount in mounts if not mount.get("readOnly")]
        assert writable == ["/var/lib/gatepost"], (name, writable)


def the_container_is_the_server_with_its_settings():
    container = gatepost(pod(MINIMAL))
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert container["image"] == f"registry.example.org/gatepost:{version}" and container["imagePullPolicy"] == "IfNotPresent"
    assert container["args"] == ["serve", "--config", "/etc/gatepost/config/gatepost.yaml"]
    assert {"name": "config", "mountPath": "/etc/gatepost/config", "readOnly": True} in container["volumeMounts"]
    assert volume(pod(MINIMAL), "config") == {"configMap": {"name": "gatepost"}}
    # Those are for sidecars.
    assert "restartPolicy" not in container and "runAsUser" not in container["securityContext"]
    assert gatepost(pod(minimal(image={"tag": "9"})))["image"] == "registry.example.org/gatepost:9"


def every_mount_has_its_volume_and_every_volume_is_mounted():
    for name, change in EVERY_POD.items():
        found = workload(over(MINIMAL, change))["spec"]
        spec = found["template"]["spec"]
        claims = [claim["metadata"]["name"] for claim in found.get("volumeClaimTemplates", [])]
        volumes = sorted(claims + [volume["name"] for volume in spec["volumes"]])
        containers = spec["containers"] + spec.get("initContainers", [])
        mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
        assert volumes == sorted(mounted), (name, volumes, mounted)


def probes_ask_the_plain_port_for_three_different_things():
    container = gatepost(pod(MINIMAL))
    assert container["startupProbe"]["httpGet"] == container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "ops"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "ops"}
    # A start may take longer than the first identity from SPIRE, 30 s unless it is set.
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > 60
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8443, "ops": 9443}
    for probe in ("startup", "liveness", "readiness"):
        before, after = container[f"{probe}Probe"], gatepost(pod(minimal(probes={probe: {"failureThreshold": 9}})))[f"{probe}Probe"]
        assert after == before | {"failureThreshold": 9} != before, probe


def the_spool_has_a_volume_that_outlives_its_pod_or_goes_with_it():
    manifests = render(MINIMAL)
    spec = manifests["StatefulSet", "gatepost"]["spec"]
    [claim] = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "audit"
    assert claim["spec"]["resources"]["requests"]["storage"] == "6Gi"
    assert "storageClassName" not in claim["spec"]
    assert spec["serviceName"] == "gatepost-pods"
    assert manifests["Service", "gatepost-pods"]["spec"]["clusterIP"] == "None"
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}

    ephemeral = render(minimal(audit={"volume": {"kind": "ephemeral"}}))
    assert ("Service", "gatepost-pods") not in ephemeral and ("StatefulSet", "gatepost") not in ephemeral
    deployment = ephemeral["Deployment", "gatepost"]["spec"]
    assert volume(deployment["template"]["spec"], "audit") == {"emptyDir": {"sizeLimit": "6Gi"}}
    # There are never fewer pods than before.
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def the_keys_of_the_trail_are_mounted_from_a_secret():
    spec = pod(minimal(audit={"secretName": "gatepost-audit-keys"}))
    mount = {"name": "audit-keys", "mountPath": "/etc/gatepost/audit", "readOnly": True}
    assert mount in gatepost(spec)["volumeMounts"]
    assert volume(spec, "audit-keys") == {"secret": {"secretName": "gatepost-audit-keys", "defaultMode": 0o440}}


EXTRAS = {
    "imagePullSecrets": [{"name": "registry"}],
    "image": {"digest": "sha256:" + "ab" * 32, "pullPolicy": "Always"},
    "commonLabels": {"team": "platform", "app.kubernetes.io/name": "other"},
    "commonAnnotations": {"example.org/owner": "platform"},
    "podLabels": {"tier": "authz"},
    "podAnnotations": {"example.org/inject": "false"},
    "annotations": {"example.org/reloader": "false"},
    "serviceAccount": {"name": "decider", "annotations": {"example.org/role": "decider"}},
    "service": {"annotations": {"example.org/lb": "internal"}, "type": "LoadBalancer", "port": 443},
    "extraEnv": [{"name": "GATEPOST_SERVER__REFLECTION", "value": "true"}],
    "extraEnvFrom": [{"secretRef": {"name": "settings"}}],
    "extraVolumes": [{"name": "keys", "secret": {"secretName": "issuer-keys"}}],
    "extraVolumeMounts": [{"name": "keys", "mountPath": "/etc/gatepost/keys", "readOnly": True}],
    "extraInitContainers": [{"name": "wait", "image": "registry.example.org/wait"}],
    "extraContainers": [{"name": "shipper", "image": "registry.example.org/shipper"}],
    "nodeSelector": {"pool": "platform"},
    "tolerations": [{"key": "platform", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]}]}}},
    "priorityClassName": "system-cluster-critical",
    "audit": {"volume": {"storageClassName": "fast", "annotations": {"example.org/backup": "true"}}},
    "podSecurityContext": {"supplementalGroups": [2000]},
}


def what_people_add_is_where_they_expect_it():
    manifests = render(minimal(**EXTRAS))
    valid(manifests)
    found = manifests["StatefulSet", "gatepost"]
    template = found["spec"]["template"]
    spec = template["spec"]
    container = gatepost(spec)
    assert container["image"] == "registry.example.org/gatepost@sha256:" + "ab" * 32
    assert container["imagePullPolicy"] == "Always"
    assert container["env"] == EXTRAS["extraEnv"] and container["envFrom"] == EXTRAS["extraEnvFrom"]
    assert EXTRAS["extraVolumeMounts"][0] in container["volumeMounts"]
    assert EXTRAS["extraVolumes"][0] in spec["volumes"]
    assert EXTRAS["extraInitContainers"][0] in spec["initContainers"]
    assert EXTRAS["extraContainers"][0] in spec["containers"]
    for key in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert spec[key] == EXTRAS[key], key
    assert spec["securityContext"]["supplementalGroups"] == [2000] and spec["securityContext"]["runAsUser"] == 65532
    assert spec["serviceAccountName"] == "decider"
    assert manifests["ServiceAccount", "decider"]["metadata"]["annotations"]["example.org/role"] == "decider"
    assert template["metadata"]["labels"]["tier"] == "authz"
    assert template["metadata"]["annotations"]["example.org/inject"] == "false"
    assert found["metadata"]["annotations"]["example.org/reloader"] == "false"
    service = manifests["Service", "gatepost"]
    assert service["spec"]["type"] == "LoadBalancer" and service["spec"]["ports"][0]["port"] == 443
    assert service["metadata"]["annotations"]["example.org/lb"] == "internal"
    claim = found["spec"]["volumeClaimTemplates"][0]
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["metadata"]["annotations"] == {"example.org/backup": "true"}
    for manifest in manifests.values():
        assert manifest["metadata"]["labels"]["team"] == "platform"
        # What selects is not for choosing.
        assert manifest["metadata"]["labels"]["app.kubernetes.io/name"] == "gatepost"
        assert manifest["metadata"]["annotations"]["example.org/owner"] == "platform"
        assert manifest["metadata"]["namespace"] == "authz"
    assert "team" not in found["spec"]["selector"]["matchLabels"]


def no_service_account_is_made_where_one_is_there():
    manifests = render(minimal(serviceAccount={"create": False, "name": "shared"}))
    assert not any(kind == "ServiceAccount" for kind, _ in manifests)
    assert pod(minimal(serviceAccount={"create": False, "name": "shared"}))["serviceAccountName"] == "shared"
    assert pod(minimal(serviceAccount={"create": False}))["serviceAccountName"] == "default"


def openshift_gives_the_users():
    values = minimal(podSecurityContext={"runAsUser": None, "runAsGroup": None, "fsGroup": None})
    security = pod(values)["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(security)
    assert security["runAsNonRoot"] is True
    valid(render(values), KUBERNETES[-1:])


def names_follow_the_release():
    kinds = lambda values, name: {found for kind, found in render(values, name) if kind == "StatefulSet"}
    assert kinds(MINIMAL, "gatepost") == {"gatepost"}
    assert kinds(MINIMAL, "shop") == {"shop-gatepost"}
    assert kinds(minimal(nameOverride="pdp"), "shop") == {"shop-pdp"}
    assert kinds(minimal(fullnameOverride="decider"), "shop") == {"decider"}
    # A Service's name has 63 characters at most, and suffixes have to fit.
    assert all(len(name) <= 63 for _, name in render(MINIMAL, "a" * 53))


CASES = [
    every_container_has_no_more_rights_than_it_needs,
    every_pod_fits_into_a_restricted_namespace,
    gatepost_writes_to_its_spool_and_nowhere_else,
    the_container_is_the_server_with_its_settings,
    every_mount_has_its_volume_and_every_volume_is_mounted,
    probes_ask_the_plain_port_for_three_different_things,
    the_spool_has_a_volume_that_outlives_its_pod_or_goes_with_it,
    the_keys_of_the_trail_are_mounted_from_a_secret,
    what_people_add_is_where_they_expect_it,
    no_service_account_is_made_where_one_is_there,
    openshift_gives_the_users,
    names_follow_the_release,
]
