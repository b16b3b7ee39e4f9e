"""What must be given, what can't be, and what can't be together: refused by a message that names the key."""

import pathlib
import re

import yaml

from rendering import CHART, MINIMAL, minimal, over, read, refusal

WRONG = yaml.safe_load((pathlib.Path(__file__).parent / "wrong.yaml").read_text())


def _names(told, key):
    """Whether a message names `a.b[0].c`: as it stands, or as a schema's message does, `at '/a/b/0': .. 'c' ..`."""
    if re.search(rf"(^|[\s(]){re.escape(key)}([\s:,(]|$)", told):
        return True
    steps = [step for step in re.split(r"[.\[\]]+", key) if step]
    whole, above = "/" + "/".join(steps), "/".join(["", *steps[:-1]])
    return any(f"at '{whole}'" in line or (f"at '{above}'" in line and f"'{steps[-1]}'" in line) for line in told.splitlines())


def every_wrong_values_file_is_refused_by_its_key():
    failures = []
    for wrong in WRONG:
        base = read(CHART / "examples" / f"{wrong.get('over', 'minimal')}.yaml")
        assert refusal(base) is None
        told = refusal(over(base, wrong["values"]))
        if told is None:
            failures.append(f"{wrong['key']}: rendered with {wrong['values']}")
        elif not _names(told, wrong["key"]) or wrong.get("says", "") not in told:
            failures.append(f"{wrong['key']}: is not what is named in: {told}")
    assert not failures, "\n".join(failures)
    assert len(WRONG) >= 30
    print(f"  {len(WRONG)} wrong values files refused, {len({wrong['key'] for wrong in WRONG})} keys named")


def everything_that_is_missing_is_told_at_once():
    told = refusal({})
    for key in ("image.repository", "tls.secretName", "policies.configMapName", "config.identity.trust_domains",
                "config.callers", "config.issuers"):
        assert f"\n{key} is missing: " in told, (key, told)


def what_looks_wrong_and_is_not_renders():
    for change in [
        {"config": {"issuers": []}},
        {"admin": {"secretName": "a"}, "config": {"admin": {"operators": [{"name": "o", "dns": "o.example.org", "may": ["RevokeToken"]}]}}, "replicas": 1},
        {"config": {"identity": {"trust_domains": [], "dns_san": True}}},
        {"config": {"server": {"drain_delay": "0s", "drain_timeout": "34999ms"}}},
        {"terminationGracePeriodSeconds": 26},
        {"audit": {"volume": {"size": "4.5G"}}},
        {"config": {"audit": {"spool": {"max_bytes": 1_000_000}}}, "audit": {"volume": {"size": "2M"}}},
        {"config": {"limits": {"token_bytes": 1024, "bundle_bytes": "1MiB"}}},
        {"config": {"audit": {"patterns": {"rules": {"ENUM_DENIED": {"off": True}}}}}},
        {"config": {"identity": {"trust_domains": ["a.org", {"name": "b.org", "ca": "/etc/b.pem"}]}}},
        {"config": {"callers": [{**MINIMAL["config"]["callers"][0], "actions": "*", "presents_for": "*"}]}},
        # As a part of another chart, Helm adds this.
        {"global": {"region": "eu"}},
    ]:
        assert refusal(minimal(**change)) is None, (change, refusal(minimal(**change)))


CASES = [
    every_wrong_values_file_is_refused_by_its_key,
    everything_that_is_missing_is_told_at_once,
    what_looks_wrong_and_is_not_renders,
]
