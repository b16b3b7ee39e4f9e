"""What a Gatepost needs around it, made of nothing of ours: an authority, certificates, an issuer that serves its keys, and the
name server that tells where the issuer is. All on loopback, all thrown away."""

import base64
import datetime
import http.server
import ipaddress
import json
import pathlib
import socket
import ssl
import struct
import threading
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Not the address that a machine's own resolver has (127.0.0.53).
NAME_SERVER = "127.0.0.153"
AUDIENCE = "gatepost"
CLIENT = "shop-app"


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Authority:
    """Signs certificates, for a day."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority for a test")])
        builder = self._builder(self.name, self.key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        usage = dict.fromkeys(
            ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"], False
        )  # fmt: skip
        builder = builder.add_extension(x509.KeyUsage(**{**usage, "key_cert_sign": True, "crl_sign": True}), critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())

    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, names, server):
        """A certificate for `names`, and its key, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = self._builder(x509.Name([]), key.public_key())
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), pem(key)

    def _builder(self, subject, public_key):
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(public_key)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))


class Issuer:
    """Signs tokens, and serves its keys over https at the name `host`."""

    def __init__(self, host, authority, folder):
        self.host = host
        self.issuer = f"https://{host}"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.fetched = 0
        certificate, key = authority.issue([x509.DNSName(host)], server=True)
        files = [pathlib.Path(folder) / f"{host}.{kind}" for kind in ("pem", "key")]
        for file, text in zip(files, (certificate, key)):
            file.write_bytes(text)
        outer = self

        class Keys(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.fetched += 1
                body = json.dumps(outer.jwks()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/jwk-set+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self):
        return f"https://{self.host}:{self.server.server_port}/jwks.json"

    def jwks(self):
        numbers = self.key.public_key().public_numbers()
        x, y = (base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        return {"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "k1", "x": x, "y": y}]}

    def token(self, subject, **claims):
        now = int(time.time())
        said = {"iss": self.issuer, "aud": AUDIENCE, "sub": subject, "client_id": CLIENT, "iat": now, "exp": now + 300}
        header = {"typ": "at+jwt", "alg": "ES256", "kid": "k1"}
        signed = ".".join(base64url(json.dumps(part).encode()) for part in (header, {**said, **claims}))
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


class NameServer:
    """Answers for its names with 127.0.0.1, over UDP at port 53, where a resolv.conf looks; for others there is nothing."""

    def __init__(self, names):
        self.names = set(names)
        self.asked = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((NAME_SERVER, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            question, sender = self.socket.recvfrom(512)
            labels, at = [], 12
            while question[at]:
                labels.append(question[at + 1 : at + 1 + question[at]].decode())
                at += 1 + question[at]
            (kind,) = struct.unpack(">H", question[at + 1 : at + 3])
            name = ".".join(labels)
            self.asked.append(name)
            known = name in self.names
            # RFC 1035 section 4.1: the same id and question; an A record (1) where one is asked for.
            answers = 1 if known and kind == 1 else 0
            flags = 0x8580 if known else 0x8583
            answer = question[:2] + struct.pack(">HHHHH", flags, 1, answers, 0, 0) + question[12 : at + 5]
            if answers:
                answer += struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + ipaddress.ip_address("127.0.0.1").packed
            self.socket.sendto(answer, sender)


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
