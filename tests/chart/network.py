"""Who reaches the pods, and whom they reach."""

from rendering import CHART, MINIMAL, minimal, read, render, valid


def _policy(values):
    return render(values)["NetworkPolicy", "gatepost"]["spec"]


def _ingress(values):
    """By port: who gets in."""
    return {rule["ports"][0]["port"]: rule["from"] for rule in _policy(values)["ingress"]}


def _egress_ports(values):
    rules = _policy(values)["egress"]
    return [port["port"] for port in rules[-1]["ports"]] if len(rules) > 1 else []


def nobody_gets_in_or_out_who_is_not_named():
    policy = _policy(MINIMAL)
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "gatepost"
    for rule in policy["ingress"]:
        # Without peers or ports a rule lets everybody in, or everywhere.
        assert rule["from"] and rule["ports"], rule
        assert {} not in rule["from"] and {"namespaceSelector": {}} not in rule["from"], rule
    for rule in policy["egress"]:
        assert rule["to"] and rule["ports"], rule
    assert set(_ingress(MINIMAL)) == {8443, 9443}


def callers_get_in_from_the_namespaces_that_their_names_tell():
    by_name = {"namespaceSelector": {"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["shop"]}]}}
    assert _ingress(MINIMAL)[8443] == [{"podSelector": {}}, by_name]
    assert _ingress(minimal(networkPolicy={"namespacesOfCallers": False}))[8443] == [{"podSelector": {}}]
    outside = {"ipBlock": {"cidr": "10.0.0.0/8"}}
    assert outside in _ingress(minimal(networkPolicy={"callers": [outside]}))[8443]
    two = _ingress(read(CHART / "examples" / "ha.yaml"))[8443]
    assert two[1]["namespaceSelector"]["matchExpressions"][0]["values"] == ["back-office", "shop"]


def operators_get_in_when_they_are_named():
    admin = {"operators": [{"spiffe_id": "spiffe://example.org/ops/anna", "name": "anna", "may": ["RevokeToken"]}]}
    values = {"admin": {"secretName": "gatepost-admin-tls"}, "config": {"admin": admin}, "replicas": 1}
    assert 8444 not in _ingress(minimal(**values))
    peers = [{"podSelector": {"matchLabels": {"role": "operations"}}}]
    assert _ingress(minimal(**values, networkPolicy={"operators": peers}))[8444] == peers
    # Nor is there a way to a listener that is not there.
    assert 8444 not in _ingress(minimal(networkPolicy={"operators": peers}))
    assert 9443 not in _ingress(minimal(networkPolicy={"monitoring": []}))


def the_way_out_is_open_on_the_ports_of_what_the_settings_name():
    assert _egress_ports(MINIMAL) == [443]
    issuer = MINIMAL["config"]["issuers"][0]
    table = [
        ({"issuers": []}, [], "nothing is fetched"),
        ({"issuers": [{**issuer, "discovery_url": "https://idp.example.org:8443/x"}]}, [8443], "a port in a URL"),
        ({"issuers": [{**issuer, "jwks_hosts": ["keys.example.org:9443"]}]}, [443, 9443], "a further host"),
        ({"issuers": [{**issuer, "introspection": {"url": "https://as:444/i", "client_id": "g"}}]}, [443, 444], "introspection"),
        ({"issuers": [{**issuer, "status_lists": ["https://status.example.org:4443/1"]}]}, [443, 4443], "status lists"),
        ({"issuers": [{**issuer, "status_lists": "ignore"}]}, [443], "no status list"),
        ({"telemetry": {"otlp": {"endpoint": "http://collector.observability:4317"}}}, [443, 4317], "OTLP"),
        ({"revocation": {"redis": {"url": "rediss://redis.example.org"}}}, [443, 6379], "the port that Redis has"),
        ({"audit": {"sinks": [{"name": "s", "syslog": {"host": "siem"}}]}}, [6514, 443], "syslog over TLS"),
        ({"audit": {"sinks": [{"name": "s", "syslog": {"host": "siem", "tls": False}}]}}, [601, 443], "plain syslog"),
        ({"audit": {"sinks": [{"name": "s", "syslog": {"host": "siem", "port": 1514}}]}}, [1514, 443], "syslog elsewhere"),
        ({"audit": {"sinks": [{"name": "k", "kafka": {"brokers": ["k:9092", "l:9093"], "topic": "t"}}]}}, [443, 9092, 9093], "Kafka"),
        ({"audit": {"sinks": [{"name": "e", "elastic": {"url": "https://elastic:9200"}}]}}, [443, 9200], "Elasticsearch"),
        ({"audit": {"sinks": [{"name": "o", "otlp": {"endpoint": "https://[fd00::1]:4318/v1"}}]}}, [443, 4318], "an address"),
    ]
    for change, ports, why in table:
        assert _egress_ports(minimal(config=change)) == ports, (why, _egress_ports(minimal(config=change)))
    for repository, port in [("git@git.example.org:p.git", 22), ("ssh://git@git.example.org:7999/p.git", 7999),
                             ("https://git.example.org/p.git", 443), ("ssh://git.example.org/p.git", 22)]:
        values = minimal(policies={"configMapName": "", "gitSync": {"repository": repository}}, config={"issuers": []})
        assert _egress_ports(values) == [port], repository


def clouds_keep_the_credentials_of_their_machines():
    [out] = [rule for rule in _policy(MINIMAL)["egress"] if rule["ports"][0]["port"] == 443]
    [four] = [peer["ipBlock"] for peer in out["to"] if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0"]
    assert {"169.254.0.0/16", "168.63.129.16/32"} <= set(four["except"])
    narrow = [{"ipBlock": {"cidr": "192.0.2.7/32"}}]
    assert _policy(minimal(networkPolicy={"destinations": narrow}))["egress"][-1]["to"] == narrow
    rule = {"to": narrow, "ports": [{"port": 1}]}
    assert rule in _policy(minimal(networkPolicy={"extraEgress": [rule]}))["egress"]
    rule = {"from": narrow, "ports": [{"port": 1}]}
    assert rule in _policy(minimal(networkPolicy={"extraIngress": [rule]}))["ingress"]
    valid(render(minimal(networkPolicy={"extraIngress": [rule]})))


def a_cluster_without_policies_needs_none():
    assert not any(kind == "NetworkPolicy" for kind, _ in render(minimal(networkPolicy={"enabled": False})))


CASES = [
    nobody_gets_in_or_out_who_is_not_named,
    callers_get_in_from_the_namespaces_that_their_names_tell,
    operators_get_in_when_they_are_named,
    the_way_out_is_open_on_the_ports_of_what_the_settings_name,
    clouds_keep_the_credentials_of_their_machines,
    a_cluster_without_policies_needs_none,
]
