"""The chart as Helm renders it, and the values that tests begin with."""

import copy
import functools
import json
import pathlib

import helm_python as helm
import kubernetes_validate
import yaml
from helm_python import _native

import custom_resources

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm" / "gatepost"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
NAMESPACE = "authz"


def number(version):
    return tuple(map(int, version.split(".")))



# A definition file has a megabyte, and is wanted hundreds of times.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)

# Everything from the oldest that Chart.yaml takes to the newest that there are schemas for.
_KNOWN = dict.fromkeys(map(kubernetes_validate.utils.major_minor, kubernetes_validate.utils.all_versions()))
_OLDEST = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"].removeprefix(">=").removesuffix(".0-0")
KUBERNETES = [version for version in _KNOWN if number(version) >= number(_OLDEST)]


def read(path):
    """A values file, as Helm reads it."""
    return helm.values_from_yaml(path.read_text())


MINIMAL = read(CHART / "examples" / "minimal.yaml")


def over(base, change):
    """`change` laid over `base`: sections are merged, everything else replaced."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return copy.deepcopy(change)
    return {key: over(base.get(key), change[key]) if key in change else copy.deepcopy(base[key]) for key in base | change}


def minimal(**change):
    return over(MINIMAL, change)


@functools.cache
def _chart():
    return helm.Chart.load(CHART)


def texts(values, name="gatepost", version=None):
    """What Helm renders, by template."""
    options = {"name": name, "namespace": NAMESPACE} | ({"kube_version": f"v{version}.0"} if version else {})
    # `Chart.render` has no word for the cluster's version; the library under it does.
    rendered = _native.call_string("helm_render", _chart()._raw(), json.dumps(values), json.dumps(options))
    return {path.split("/templates/", 1)[1]: text for path, text in json.loads(rendered).items()}


def render(values, name="gatepost", version=None):
    """Every manifest, by kind and name."""
    manifests = {}
    for path, text in texts(values, name, version).items():
        if not path.endswith(".yaml"):
            continue
        for manifest in yaml.load_all(text, Loader=StrictLoader):
            if manifest is not None:
                key = manifest["kind"], manifest["metadata"]["name"]
                assert key not in manifests, f"{key} is there twice"
                manifests[key] = manifest
    return manifests


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML in which a key that is there twice is a mistake, as it is for Kubernetes."""


def _mapping(loader, node, deep=False):
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    assert not twice, f"{sorted(twice)} twice at {node.start_mark}"
    return yaml.constructor.SafeConstructor.construct_mapping(loader, node, deep)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def workload(values):
    """The Deployment or StatefulSet."""
    [found] = [manifest for (kind, _), manifest in render(values).items() if kind in ("Deployment", "StatefulSet")]
    return found


def pod(values):
    return workload(values)["spec"]["template"]["spec"]


def gatepost(spec):
    """Gatepost's own container of a pod."""
    [found] = [container for container in spec["containers"] if container["name"] == "gatepost"]
    return found


def config(values):
    """gatepost.yaml."""
    return yaml.load(render(values)["ConfigMap", "gatepost"]["data"]["gatepost.yaml"], Loader=StrictLoader)


def volume(spec, name):
    [found] = [volume for volume in spec["volumes"] if volume["name"] == name]
    return {key: value for key, value in found.items() if key != "name"}


def refusal(values, name="gatepost", version=None):
    """Why Helm does not render it; nothing when it does."""
    try:
        texts(values, name, version)
    except helm.HelmError as error:
        return str(error)
    return None


def lint(values):
    """What `helm lint --strict` has against it."""
    report = helm.lint(CHART, values, strict=True, namespace=NAMESPACE)
    return [message["error"] for message in report["messages"] if message["severity"] >= 2] + report["errors"]


def valid(manifests, versions=KUBERNETES):
    """How many manifests these versions of Kubernetes take; the others are refused here. Custom resources are left to
    custom_resources.py."""
    count = 0
    for manifest in manifests.values():
        if manifest["apiVersion"].split("/")[0] in custom_resources.GROUPS:
            custom_resources.validate(manifest)
            continue
        for version in versions:
            kubernetes_validate.validate(manifest, version, strict=True)
            count += 1
    return count
