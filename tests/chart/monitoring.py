"""What Prometheus and Grafana get."""

import json

import yaml

from rendering import CHART, MINIMAL, minimal, render, valid


def every_pod_is_scraped_ready_or_not():
    assert ("Service", "gatepost-metrics") not in render(MINIMAL)
    values = minimal(monitoring={"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "interval": "15s"}})
    manifests = render(values)
    valid(manifests)
    service = manifests["Service", "gatepost-metrics"]
    assert service["spec"]["publishNotReadyAddresses"] is True and service["spec"]["clusterIP"] == "None"
    monitor = manifests["ServiceMonitor", "gatepost"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"] and endpoint["interval"] == "15s"
    assert monitor["spec"]["namespaceSelector"]["matchNames"] == [service["metadata"]["namespace"]]
    # This Service, and none of the others, which have no such port.
    selected = monitor["spec"]["selector"]["matchLabels"].items()
    chosen = [name for (kind, name), manifest in manifests.items() if kind == "Service" and selected <= manifest["metadata"]["labels"].items()]
    assert chosen == ["gatepost-metrics"], chosen


def the_alerts_are_the_rules_file():
    assert not any(kind == "PrometheusRule" for kind, _ in render(MINIMAL))
    manifests = render(minimal(monitoring={"prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}}}))
    valid(manifests)
    found = manifests["PrometheusRule", "gatepost"]
    assert found["metadata"]["labels"]["release"] == "prometheus"
    rules = yaml.safe_load((CHART / "rules" / "gatepost.yaml").read_text())
    assert list(rules) == ["groups"] and found["spec"] == rules
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert alerts and len(set(alerts)) == len(alerts)


def the_dashboard_comes_when_it_is_asked_for():
    assert ("ConfigMap", "gatepost-dashboard") not in render(MINIMAL)
    manifests = render(minimal(monitoring={"dashboard": {"enabled": True}}))
    valid(manifests)
    found = manifests["ConfigMap", "gatepost-dashboard"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    dashboard = json.loads(found["data"]["gatepost.json"])
    assert dashboard == json.loads((CHART / "dashboards" / "gatepost.json").read_text())


def no_panel_lies_on_another():
    dashboard = json.loads((CHART / "dashboards" / "gatepost.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len(panels) > 20 and all(panel["targets"] for panel in panels)
    taken = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


CASES = [
    every_pod_is_scraped_ready_or_not,
    the_alerts_are_the_rules_file,
    the_dashboard_comes_when_it_is_asked_for,
    no_panel_lies_on_another,
]
