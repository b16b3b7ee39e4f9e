"""The shapes of the custom resources that the chart renders, as far as it uses them: no cluster that has them is at hand, and
no schema of Kubernetes knows them. From the API references of cert-manager (v1) and of the Prometheus operator (v1)."""

import jsonschema


def _object(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": _TEXT, "minItems": 1}
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
# Go's, which cert-manager takes, and Prometheus' own, which has days too.
_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
_LONG_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w|y))+$"}
_METADATA = _object(["name", "namespace", "labels"], name=_TEXT, namespace=_TEXT, labels=_LABELS, annotations=_LABELS)

_CERTIFICATE = _object(
    ["secretName", "issuerRef"],
    secretName=_TEXT,
    issuerRef=_object(["name"], name=_TEXT, kind=_TEXT, group=_TEXT),
    duration=_DURATION,
    renewBefore=_DURATION,
    privateKey=_object(
        rotationPolicy={"enum": ["Always", "Never"]},
        algorithm={"enum": ["RSA", "ECDSA", "Ed25519"]},
        size={"type": "integer"},
        encoding={"enum": ["PKCS1", "PKCS8"]},
    ),
    usages={"type": "array", "items": {"enum": ["digital signature", "server auth", "client auth"]}, "uniqueItems": True},
    dnsNames=_TEXTS,
    ipAddresses=_TEXTS,
    uris=_TEXTS,
)

_SERVICE_MONITOR = _object(
    ["selector", "endpoints"],
    selector=_object(["matchLabels"], matchLabels=_LABELS),
    namespaceSelector=_object(["matchNames"], matchNames=_TEXTS),
    endpoints={
        "type": "array",
        "minItems": 1,
        "items": _object(
            ["port"],
            port=_TEXT,
            path=_TEXT,
            scheme={"enum": ["http", "https"]},
            interval=_DURATION,
            scrapeTimeout=_DURATION,
            metricRelabelings={"type": "array", "items": {"type": "object"}},
        ),
    },
)

_RULE = _object(
    ["expr"],
    alert=_TEXT,
    record=_TEXT,
    expr={"type": ["string", "integer"]},
    **{"for": _LONG_DURATION},
    keep_firing_for=_LONG_DURATION,
    labels=_LABELS,
    annotations=_LABELS,
)
_PROMETHEUS_RULE = _object(
    ["groups"],
    groups={
        "type": "array",
        "minItems": 1,
        "items": _object(
            ["name", "rules"],
            name=_TEXT,
            interval=_LONG_DURATION,
            query_offset=_LONG_DURATION,
            limit={"type": "integer"},
            labels=_LABELS,
            rules={"type": "array", "minItems": 1, "items": {**_RULE, "oneOf": [{"required": ["alert"]}, {"required": ["record"]}]}},
        ),
    },
)

_KINDS = {
    ("cert-manager.io/v1", "Certificate"): _CERTIFICATE,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _SERVICE_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): _PROMETHEUS_RULE,
}
GROUPS = {version.split("/")[0] for version, _ in _KINDS}


def validate(manifest):
    spec = _KINDS[manifest["apiVersion"], manifest["kind"]]
    whole = _object(["apiVersion", "kind", "metadata", "spec"], apiVersion={}, kind={}, metadata=_METADATA, spec=spec)
    jsonschema.Draft202012Validator(whole).validate(manifest)
