"""A service that asks Gatepost before it touches data, with nothing but grpcio and the standard library.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python service.py --gatepost https://127.0.0.1:8443 \
        --ca ca.pem --cert client.pem --key client.key --listen 127.0.0.1:0

The same shop, routes and HTTP answers as examples/axum_service.rs. The part to copy is between the two rules below:
an error is no access, and so is every answer that is not an allow understood to the last word.
"""

import argparse
import json
import re
import ssl
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import grpc
import grpc_tools
from google.protobuf import field_mask_pb2, struct_pb2
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[2] / "proto"
BODY_BYTES = 64 * 1024


def stubs():
    """Generates the stubs into a temporary folder and imports them. A real service does this when it is built."""
    with tempfile.TemporaryDirectory() as folder:
        well_known = Path(grpc_tools.__file__).parent / "_proto"
        arguments = [f"-I{PROTO}", f"-I{well_known}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
        if protoc.main(["protoc", *arguments, "gatepost/v1/decision_service.proto"]) != 0:
            raise SystemExit("the stubs could not be generated")
        sys.path.insert(0, folder)
        try:
            from gatepost.v1 import decision_service_pb2, decision_service_pb2_grpc
        finally:
            sys.path.remove(folder)
        return decision_service_pb2, decision_service_pb2_grpc


# ---- the part to copy -------------------------------------------------------------------------------------------

PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*){0,15}")


def is_path(text):
    return len(text) <= 256 and PATH.fullmatch(text) is not None


class NoAnswer(Exception):
    """There is no decision. Never access."""


class Malformed(NoAnswer):
    """Gatepost cannot make sense of the question."""


class Mask:
    """The granted fields: never empty, never everything."""

    def __init__(self, paths):
        if not paths or not all(map(is_path, paths)):
            raise NoAnswer("an allow with a mask that is none")
        self.paths = frozenset(paths)
        self.root = {}
        for path in sorted(self.paths):  # "address" sorts before "address.city", and covers it
            here, (*parents, last) = self.root, path.split(".")
            for name in parents:
                here = here.setdefault(name, {})
                if here is True:
                    break
            if here is not True:
                here[last] = True

    def apply(self, document):
        """What of the document is granted. Lists element by element; what holds nothing granted goes."""
        left = _keep(self.root, document)
        return ([] if isinstance(document, list) else {}) if left is _NOTHING else left

    def permits(self, path):
        here = self.root
        for name in path.split("."):
            if here is True:
                return True
            if name not in here:
                return False
            here = here[name]
        return here is True

    def refused_by(self, patch):
        """Which paths of a JSON merge patch are not granted. A key is taken as it is, never split at its dots."""
        return list(_leaves(patch, self.root)) if isinstance(patch, dict) else ["*"]


_NOTHING = object()


def _keep(node, value):
    if node is True:
        return value
    if isinstance(value, dict):
        kept = {name: _keep(node[name], below) for name, below in value.items() if name in node}
        kept = {name: below for name, below in kept.items() if below is not _NOTHING}
    elif isinstance(value, list):
        kept = [below for below in (_keep(node, element) for element in value) if below is not _NOTHING]
    else:
        return _NOTHING
    return kept or _NOTHING


def _leaves(fields, node, prefix=""):
    for name, value in sorted(fields.items()):
        below = node.get(name) if node else None
        if below is True:
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, below, f"{prefix}{name}.")
        else:
            yield prefix + name


def leaf_paths(patch):
    """What a JSON merge patch would change."""
    return list(_leaves(patch, None)) if isinstance(patch, dict) else ["*"]


class Gatepost:
    """Asks, over mutual TLS, and believes nothing that is not an answer to what was asked."""

    def __init__(self, address, ca, cert, key, deadline, understands=(), server_name=None, reload_interval=10.0):
        self.pb, self.rpc = stubs()
        self.address, self.files, self.deadline = address, (ca, cert, key), deadline
        self.understands, self.server_name = frozenset(understands), server_name
        self.reload_interval = reload_interval
        self.lock, self.looked_at, self.loaded, self.stub = threading.Lock(), 0.0, None, None
        self._service()

    def check(self, token, question, headers=()):
        """One question, a BatchCheckItem; see `batch`."""
        (answer,) = self.batch(token, [question], headers)
        if isinstance(answer, NoAnswer):
            raise answer
        return answer

    def batch(self, token, questions, headers=()):
        """1 to 100 questions on behalf of one token. An Answer or a NoAnswer for each, in order."""
        request = self.pb.BatchCheckRequest(token=token, items=questions)
        try:
            response = self._service().BatchCheck(request, timeout=self.deadline, metadata=tuple(headers))
        except grpc.RpcError as error:
            kind = Malformed if error.code() is grpc.StatusCode.INVALID_ARGUMENT else NoAnswer
            raise kind(error.code().name) from None
        if len(response.results) != len(questions):
            raise NoAnswer("not as many answers as questions")
        return [self._take(result, question) for result, question in zip(response.results, questions)]

    def question(self, action, entity_type, id=None, attributes=None, fields=None, strict=False):
        """A question. `fields`: None, "all", or a list of paths; `id`: None for any object of the type."""
        resource = self.pb.Resource(type=entity_type, id=id)
        if attributes:
            resource.attributes.CopyFrom(struct_pb2.Struct())
            resource.attributes.update(attributes)
        item = self.pb.BatchCheckItem(action=action, resource=resource)
        if fields is not None:
            if not fields:
                raise ValueError("an empty list of fields: ask for all, for some, or for none")
            mode = self.pb.FieldQuery.MODE_STRICT if strict else self.pb.FieldQuery.MODE_UNSPECIFIED
            paths = None if fields == "all" else field_mask_pb2.FieldMask(paths=fields)
            item.fields.CopyFrom(self.pb.FieldQuery(all=fields == "all", paths=paths, mode=mode))
        return item

    def _take(self, result, question):
        pb = self.pb
        if result.WhichOneof("result") != "response":
            malformed = result.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            return (Malformed if malformed else NoAnswer)(result.error.reason or "no answer")
        response = result.response
        known = (pb.DECISION_ALLOW, pb.DECISION_DENY, pb.DECISION_CONDITIONAL)
        if response.decision not in known or not response.decision_id:
            return NoAnswer("not an answer")
        allowed, mask = response.decision == pb.DECISION_ALLOW, None
        if allowed:
            if response.HasField("denial") or response.HasField("fields") != question.HasField("fields"):
                return NoAnswer("not an answer to what was asked")
            if question.HasField("fields"):
                try:
                    mask = Mask(response.fields.paths)
                    named = question.fields.paths.paths
                    wanted = Mask(named) if named else None
                except NoAnswer as error:
                    return error
                if wanted and not all(map(wanted.permits, mask.paths)):
                    return NoAnswer("granted fields that nobody asked for")
                if wanted and question.fields.mode == pb.FieldQuery.MODE_STRICT and not all(map(mask.permits, named)):
                    return NoAnswer("an allow to a strict question without all of its fields")
            allowed = all(obligation.id in self.understands for obligation in response.obligations)
        return Answer(pb, response, allowed, mask if allowed else None)

    def _service(self):
        """The stub, over a new channel once the certificate files have changed and can be read."""
        with self.lock:
            now = time.monotonic()
            if self.stub is None or now - self.looked_at > self.reload_interval:
                self.looked_at = now
                loaded = self._read() or self.loaded
                if loaded is None:
                    raise SystemExit("the certificate files cannot be read, or do not belong together")
                if loaded != self.loaded:
                    ca, cert, key = self.loaded = loaded
                    credentials = grpc.ssl_channel_credentials(ca, private_key=key, certificate_chain=cert)
                    channel = grpc.secure_channel(self.address, credentials, options=self._options())
                    self.stub = self.rpc.DecisionServiceStub(channel)
            return self.stub

    def _read(self):
        """The certificate files if they belong together; one that is half renewed is left for the next look."""
        ca, cert, key = self.files
        try:
            loaded = [Path(file).read_bytes() for file in self.files]
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(ca)
            context.load_cert_chain(cert, key)
            # What was read is what was tried, unless somebody wrote meanwhile.
            return loaded if loaded == [Path(file).read_bytes() for file in self.files] else None
        except OSError:  # ssl.SSLError is one
            return None

    def _options(self):
        # A question changes nothing, so it may be asked again, but only when nobody answered, and once.
        retry = {
            "maxAttempts": 2, "initialBackoff": "0.01s", "maxBackoff": "0.02s", "backoffMultiplier": 1,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config = {"methodConfig": [{"name": [{"service": "gatepost.v1.DecisionService"}], "retryPolicy": retry}]}
        options = [("grpc.service_config", json.dumps(config)), ("grpc.initial_reconnect_backoff_ms", 100)]
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        return options


class Answer:
    """What Gatepost decided. Only `allowed` is access."""

    def __init__(self, pb, response, allowed, mask):
        self.allowed, self.mask, self.decision_id = allowed, mask, response.decision_id
        self.policy_revision = response.policy_revision
        self.obligations = [obligation.id for obligation in response.obligations]
        self.refused_fields = list(response.denial.refused_fields.paths)
        self.no_field_granted = response.denial.code == pb.DENIAL_CODE_NO_FIELD_GRANTED
        self.needs_a_new_token = response.denial.code in (
            pb.DENIAL_CODE_TOKEN_EXPIRED, pb.DENIAL_CODE_TOKEN_REJECTED, pb.DENIAL_CODE_TOKEN_REVOKED,
        )
        self.issuer_is_away = response.denial.code == pb.DENIAL_CODE_ISSUER_UNAVAILABLE
        self.not_for_us = response.denial.code == pb.DENIAL_CODE_TOKEN_NOT_FOR_CALLER


# ---- the shop ---------------------------------------------------------------------------------------------------


class Refusal(Exception):
    def __init__(self, status, error, **more):
        super().__init__(error)
        self.status, self.body = status, {"error": error, **more}


SIGN_IN = (401, "sign in")
NOT_FOUND = (404, "not found")


def about_the_token(answer):
    """What to say of the token, if that is what stands in the way: only some of it is cured by a new one."""
    if answer.needs_a_new_token:
        return Refusal(*SIGN_IN)
    if answer.issuer_is_away:
        return Refusal(503, "try again later")
    return Refusal(403, "not allowed") if answer.not_for_us else None


def refusal_of(answer):
    return about_the_token(answer) or Refusal(*NOT_FOUND)


class Shop:
    def __init__(self, gatepost):
        self.gatepost, self.lock = gatepost, threading.Lock()
        self.accounts = {
            f"acc-{owner}": {
                "tenant": "acme", "owner": owner, "display_name": owner.title(), "plan": "gold",
                "email": f"{owner}@acme.example", "phone": "+41 31 000 00 00",
                "address": {"country": "CH", "city": city, "street": "Gasse 1"},
                "role": "customer", "last_login_ip": "192.0.2.7", "risk_score": 12, "password_hash": "argon2id..",
            }
            for owner, city in (("alice", "Bern"), ("bob", "Basel"))
        }
        self.orders = {
            id: {
                "tenant": "acme", "customer": customer, "status": status, "total": total, "items": ["kettle", "tea"],
                "shipping": {"recipient": customer, "street": "Gasse 1", "city": "Bern"},
                "payment": {"method": "card", "last_digits": "4242"}, "internal_note": "calls often",
            }
            for id, customer, status, total in (("ord-1", "alice", "paid", 4200), ("ord-2", "bob", "open", 1000))
        }

    def about(self, kind, action, id, document, **fields):
        """The facts that the policies go by; not the fields, which Gatepost has no need to know."""
        facts = {"tenant": {"type": "Tenant", "id": document["tenant"]}}
        if kind == "Account":
            facts["owner"] = {"type": "User", "id": document["owner"]}
        else:
            facts["customer"] = {"type": "User", "id": document["customer"]}
            facts |= {"status": document["status"], "total": document["total"]}
        return self.gatepost.question(action, kind, id, facts, **fields)

    def read(self, kind, store, id, token, headers):
        document = self.find(kind, store, id, token, headers)
        question = self.about(kind, f"{kind}.read", id, document, fields="all")
        answer = self.gatepost.check(token, question, headers)
        if not answer.allowed:
            raise refusal_of(answer)
        return answer.mask.apply(document) | {"id": id}

    def update_account(self, id, patch, token, headers):
        account = self.find("Account", self.accounts, id, token, headers)
        changed = leaf_paths(patch)
        if not changed or not all(map(is_path, changed)):
            raise Refusal(400, "malformed")
        questions = [
            self.about("Account", "Account.read", id, account, fields="all"),
            self.about("Account", "Account.update", id, account, fields=changed, strict=True),
        ]
        may_read, may_update = self.gatepost.batch(token, questions, headers)
        if isinstance(may_read, NoAnswer):
            raise may_read
        if not may_read.allowed:
            raise refusal_of(may_read)
        if isinstance(may_update, NoAnswer):
            raise may_update
        if refusal := about_the_token(may_update):
            raise refusal
        refused = may_update.refused_fields or (changed if may_update.no_field_granted else [])
        if may_update.allowed:
            refused = may_update.mask.refused_by(patch)
        if refused:
            raise Refusal(403, "these fields may not be changed", fields=refused)
        if not may_update.allowed:
            raise Refusal(403, "not allowed")
        with self.lock:
            current = self.accounts[id]
            if any(current[name] != account[name] for name in ("tenant", "owner")):
                raise Refusal(409, "it has changed meanwhile")
            updated = self.accounts[id] = merge(current, patch)
        for obligation in may_update.obligations:
            print(f"{obligation}: told the owner of {id}", file=sys.stderr)
        return may_read.mask.apply(updated) | {"id": id}

    def find(self, kind, store, id, token, headers):
        """An id that is not there is answered like somebody else's, and only after the token has been looked at."""
        with self.lock:
            document = store.get(id)
        if document is None:
            raise refusal_of(self.gatepost.check(token, self.gatepost.question(f"{kind}.read", kind), headers))
        return document


def merge(target, patch):
    """RFC 7396 section 2, into a copy."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


class Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    shop = None

    def do_GET(self):
        self.answer(self.get)

    def do_PATCH(self):
        self.answer(self.patch)

    def get(self, kind, id, token, headers, body):
        store = self.shop.accounts if kind == "accounts" else self.shop.orders
        return self.shop.read("Account" if kind == "accounts" else "Order", store, id, token, headers)

    def patch(self, kind, id, token, headers, body):
        if kind != "accounts":
            raise Refusal(405, "cannot be changed")
        try:
            patch = json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(400, "malformed") from None
        return self.shop.update_account(id, patch, token, headers)

    def answer(self, work):
        try:
            status, body = 200, work(*self.route(), *self.asker(), self.body())
        except Refusal as refusal:
            status, body = refusal.status, refusal.body
        except Malformed:
            status, body = 400, {"error": "malformed"}
        except NoAnswer as error:
            print(f"no answer: {error}", file=sys.stderr)
            status, body = 503, {"error": "try again later"}
        except Exception as error:  # whatever it is, it is not access; the kind of it holds no secret
            print(f"failed: {type(error).__name__}", file=sys.stderr)
            status, body = 500, {"error": "failed"}
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Connection", "close")
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(text)

    def route(self):
        match urlsplit(self.path).path.split("/"):
            case ["", ("accounts" | "orders") as kind, id] if id:
                return kind, unquote(id)
        raise Refusal(*NOT_FOUND)

    def asker(self):
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Refusal(*SIGN_IN)
        names = ((name, self.headers.get(name) or "") for name in ("traceparent", "x-request-id"))
        good = re.compile(r"[\x21-\x7e]{1,128}")
        return token.strip(), [(name, value) for name, value in names if good.fullmatch(value)]

    def body(self):
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal() or int(length) > BODY_BYTES or self.headers.get("Transfer-Encoding"):
            raise Refusal(413, "too much")
        return self.rfile.read(int(length))

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description="A shop that asks Gatepost.")
    parser.add_argument("--gatepost", required=True, help="https://host:port")
    parser.add_argument("--server-name", help="the name in Gatepost's certificate, if it is not the host above")
    parser.add_argument("--ca", required=True, help="PEM: the authority of Gatepost's certificate")
    parser.add_argument("--cert", required=True, help="PEM: this service's certificate")
    parser.add_argument("--key", required=True, help="PEM: its private key")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--deadline-ms", type=int, default=200, help="how long a question may take")
    options = parser.parse_args()
    target = urlsplit(options.gatepost)
    if target.scheme != "https" or target.path.strip("/"):
        raise SystemExit("--gatepost must be https://host:port")
    gatepost = Gatepost(
        f"{target.hostname}:{target.port or 443}", options.ca, options.cert, options.key, options.deadline_ms / 1000,
        understands=["notify-account-owner"], server_name=options.server_name,
    )
    host, _, port = options.listen.rpartition(":")
    Door.shop = Shop(gatepost)
    server = ThreadingHTTPServer((host, int(port)), Door)
    print("listening on {}:{}".format(*server.server_address[:2]), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
