"""Every example is linted, rendered, and valid for every Kubernetes that it says it is for; and what it makes of the settings
stands in rendered/, where the server's own loader takes it (tests/spec/chart.rs)."""

import pathlib
import shutil
import tempfile

import helm_python as helm
import kubernetes_validate
import yaml

from rendering import CHART, EXAMPLES, KUBERNETES, MINIMAL, config, lint, number, read, refusal, render, texts, valid

RENDERED = pathlib.Path(__file__).parent / "rendered"
# The oldest Kubernetes that can do it, and the key that says so to an older one.
NEEDS = {
    "image-volume": ("1.31", "policies.image.reference"),
    "sidecar": ("1.29", "sidecar.enabled"),
    "spire": ("1.29", "policies.gitSync.repository"),
}


def every_example_is_valid_for_every_kubernetes_that_it_is_for():
    rendered = checked = refused = 0
    for example in EXAMPLES:
        since, key = NEEDS.get(example.stem, (KUBERNETES[0], None))
        for version in KUBERNETES:
            if number(version) < number(since):
                told = refusal(read(example), version=version)
                assert told and f"{key} needs Kubernetes {since}" in told, (example.name, version, told)
                refused += 1
            else:
                manifests = render(read(example), version=version)
                checked += valid(manifests, [version])
                rendered += len(manifests)
    assert len(EXAMPLES) >= 6 and len(KUBERNETES) >= 10 and set(NEEDS) <= {example.stem for example in EXAMPLES}
    print(f"  {len(EXAMPLES)} examples, Kubernetes {KUBERNETES[0]} to {KUBERNETES[-1]}: {rendered} manifests rendered, "
          f"{checked} valid by Kubernetes' schemas, {rendered - checked} by custom_resources.py, {refused} refused by version")


def a_manifest_that_is_wrong_is_not_valid():
    manifests = render(MINIMAL)
    manifests["Service", "gatepost"]["spec"]["ports"][0]["prot"] = "TCP"
    try:
        valid(manifests)
    except Exception as error:
        assert "prot" in str(error), error
    else:
        raise AssertionError("validation takes anything")


def the_chart_is_for_the_kubernetes_versions_that_it_is_tested_with():
    assert KUBERNETES[0] == "1.28" and KUBERNETES[-1] == kubernetes_validate.utils.major_minor(kubernetes_validate.latest_version())
    # None in between is left out.
    assert [number(version)[1] for version in KUBERNETES] == list(range(28, 28 + len(KUBERNETES)))


def every_example_passes_the_strict_lint():
    for values in [MINIMAL, *map(read, EXAMPLES)]:
        assert not lint(values), lint(values)


def the_notes_say_what_comes_next():
    for example in EXAMPLES:
        notes = texts(read(example))["NOTES.txt"]
        assert "kubectl" in notes and "Next:" in notes and "<no value>" not in notes, (example.name, notes)
        assert not any(line != line.rstrip() for line in notes.splitlines()), example.name
    assert "gatepost.authz.svc:8443" in texts(MINIMAL)["NOTES.txt"]
    assert "orders (spiffe://example.org/ns/shop/sa/orders)" in texts(MINIMAL)["NOTES.txt"]


def _made(example):
    """The files that an example makes: settings and, where it has them, policies."""
    values = read(example)
    manifests = render(values)
    made = {f"{example.stem}/gatepost.yaml": manifests["ConfigMap", "gatepost"]["data"]["gatepost.yaml"]}
    policies = manifests.get(("ConfigMap", "gatepost-policies"), {"data": {}})["data"]
    return made | {f"{example.stem}/policies/{name}": text for name, text in policies.items()}


def what_examples_make_of_the_settings_is_on_record():
    made = {name: text for example in EXAMPLES for name, text in _made(example).items()}
    there = {str(path.relative_to(RENDERED)): path.read_text() for path in RENDERED.rglob("*") if path.is_file()}
    for name in sorted(made | there):
        assert made.get(name) == there.get(name), f"rendered/{name} is out of date: python tests/chart.py --update"


def update():
    shutil.rmtree(RENDERED, ignore_errors=True)
    for example in EXAMPLES:
        for name, text in _made(example).items():
            (RENDERED / name).parent.mkdir(parents=True, exist_ok=True)
            (RENDERED / name).write_text(text)


def the_settings_are_what_was_said_with_the_places_that_the_chart_mounts():
    settings = config(MINIMAL)
    for key in ("callers", "issuers", "identity"):
        assert settings[key] == MINIMAL["config"][key], key
    assert settings["audit"]["spool"]["directory"] == "/var/lib/gatepost/audit"
    assert settings["audit"]["sinks"] == [{"name": "stdout", "stdout": {}}]
    assert settings["server"]["listen"] == "0.0.0.0:8443" and settings["server"]["ops_listen"] == "0.0.0.0:9443"
    # A large number stays one: Helm's are floating-point.
    values = read(CHART / "examples" / "ha.yaml")
    text = render(values)["ConfigMap", "gatepost"]["data"]["gatepost.yaml"]
    assert yaml.safe_load(text)["cache"]["decisions"] == 1_000_000 and "decisions: 1000000\n" in text


def the_package_holds_what_a_user_needs():
    with tempfile.TemporaryDirectory() as folder:
        archive = helm.package(CHART, destination=folder)
        with helm.Chart.load(archive) as chart:
            assert chart.render(MINIMAL, name="gatepost")
            names = {file["name"] for file in chart.files}
            assert chart.schema["$defs"]["config"]
    assert {"README.md", "examples/minimal.yaml", "rules/gatepost.yaml", "dashboards/gatepost.json"} <= names, names
    assert not any(name.startswith("schema/") for name in names), names


CASES = [
    every_example_is_valid_for_every_kubernetes_that_it_is_for,
    a_manifest_that_is_wrong_is_not_valid,
    the_chart_is_for_the_kubernetes_versions_that_it_is_tested_with,
    every_example_passes_the_strict_lint,
    the_notes_say_what_comes_next,
    what_examples_make_of_the_settings_is_on_record,
    the_settings_are_what_was_said_with_the_places_that_the_chart_mounts,
    the_package_holds_what_a_user_needs,
]
