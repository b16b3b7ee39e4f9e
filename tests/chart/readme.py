"""The chart's README, made from values.yaml: each value with its default and the comment above it."""

import json

import yaml

from rendering import CHART

README = CHART / "README.md"

HEAD = """\
# Gatepost's Helm chart

<!-- Made from values.yaml by `python tests/chart.py --update`; change it there. -->

{description} Chart {version}, Gatepost {app}, Kubernetes {kubernetes}.

```console
$ helm install gatepost helm/gatepost --namespace authz --values values.yaml
```

Without values it does not render: it says what is missing, all at once. The least that has to be said is
[examples/minimal.yaml](examples/minimal.yaml); [the guide](../../docs/kubernetes.md) goes through certificates, policies, the network
and a sidecar.

| example | what it shows |
|---|---|
{examples}

What nobody can switch off: not root, a read-only root, no capability, the runtime's seccomp profile, no token of the service account.
A change of `config` rolls the pods; certificates and policies are taken as they change, and roll nothing.
"""


class Value:
    """A key of values.yaml: its path, the comment above it, and what it is by default."""

    def __init__(self, path, comment, node):
        self.path, self.comment, self.node = path, comment, node


def _comment(lines, line):
    """The block of comments that ends above a line, as one text."""
    block = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        block.insert(0, lines[line].lstrip()[1:].strip())
    return " ".join(block)


def _walk(lines, node, path=()):
    for key, value in node.value:
        at = (*path, key.value)
        comment = _comment(lines, key.start_mark.line)
        section = isinstance(value, yaml.MappingNode) and not value.flow_style and value.value
        described = section and any(_comment(lines, inner.start_mark.line) for inner, _ in value.value)
        yield Value(at, comment, None if described else value)
        if described:
            yield from _walk(lines, value, at)


def values():
    text = (CHART / "values.yaml").read_text()
    return list(_walk(text.splitlines(), yaml.compose(text)))


def _shown(node):
    value = yaml.SafeLoader("").construct_object(node, deep=True)
    return "`" + json.dumps(value, ensure_ascii=False).replace("|", "\\|") + "`"


def _row(value, section):
    name = ".".join(value.path[len(section):])
    return f"| `{name}` | {_shown(value.node)} | {value.comment.replace('|', chr(92) + '|')} |"


def _tables(found):
    """One table for the plain values, then one for each section, in the order of the file."""
    plain = [value for value in found if len(value.path) == 1 and value.node is not None]
    parts = ["\n## The rest\n\n| value | default | what it is |\n|---|---|---|\n" + "\n".join(_row(value, ()) for value in plain)]
    sections = [value for value in found if len(value.path) == 1 and value.node is None]
    for section in reversed(sections):
        inside = [value for value in found if value.path[0] == section.path[0]]
        rows = [_row(value, section.path) if value.node is not None else _heading(value, section.path) for value in inside if value is not section]
        text = f"\n## `{section.path[0]}`\n\n" + (f"{section.comment}\n\n" if section.comment else "")
        parts.insert(0, text + "| value | default | what it is |\n|---|---|---|\n" + "\n".join(row for row in rows if row))
    return "\n".join(parts) + "\n"


def _heading(value, section):
    """A section inside a section: a row only where something is said about it."""
    return f"| `{'.'.join(value.path[len(section):])}` | | {value.comment} |" if value.comment else None


def _summary(example):
    """The comment that an example begins with."""
    lines = example.read_text().splitlines()
    return _comment(lines, next(index for index, line in enumerate(lines) if not line.startswith("#")))


def readme():
    facts = yaml.safe_load((CHART / "Chart.yaml").read_text())
    examples = sorted((CHART / "examples").glob("*.yaml"))
    rows = "\n".join(f"| [{example.stem}](examples/{example.name}) | {_summary(example)} |" for example in examples)
    head = HEAD.format(
        description=facts["description"], version=facts["version"], app=facts["appVersion"],
        kubernetes=facts["kubeVersion"].removesuffix("-0").replace(">=", "from ") + " on", examples=rows,
    )
    return head + _tables(values())


def update():
    README.write_text(readme())


def every_value_is_described_in_whole_sentences():
    for value in values():
        comment = value.comment
        if value.node is None and len(value.path) > 1 or value.path in (("image",), ("config",), ("service",), ("serviceAccount",)):
            # A section may leave it to what is in it.
            assert not comment or comment[-1] == ".", value.path
            continue
        assert comment and comment[-1] in ".:", f"{'.'.join(value.path)}: {comment!r}"
        assert comment[0].isupper() or comment[0] in "`*", f"{'.'.join(value.path)}: {comment!r}"


def the_schema_knows_every_value_and_no_other():
    schema = json.loads((CHART / "schema" / "values.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(schema, default, path):
        if "properties" not in schema or path == ("config",):
            return
        # What Helm itself adds, and what Kubernetes has and the chart sets nothing for.
        known = set(schema["properties"]) - {"global"}
        if path in {("podSecurityContext",), ("resources",)} or path[0:1] == ("probes",) or path[-1:] == ("privateKey",):
            assert set(default) <= known, path
            return
        assert known == set(default), (path, known ^ set(default))
        for key in known:
            if isinstance(default[key], dict):
                compare(schema["properties"][key], default[key], (*path, key))

    compare(schema, defaults, ())


def the_readme_is_what_the_values_say():
    there = README.read_text() if README.exists() else ""
    assert there == readme(), "helm/gatepost/README.md is out of date: python tests/chart.py --update"


CASES = [
    every_value_is_described_in_whole_sentences,
    the_schema_knows_every_value_and_no_other,
    the_readme_is_what_the_values_say,
]
