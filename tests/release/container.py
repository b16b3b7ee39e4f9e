"""The unpacked image as a container runtime would run it: a root of its own, a user of its own, a service manager that listens,
and nothing else."""

import json
import os
import pathlib
import socket
import subprocess

import world
import yaml
from cryptography import x509

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
USER = 65532
PATIENCE = 60
# For chroot and unshare; the binary has no use for it.
PATHS = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
SERVICE = "spiffe://shop.example/ns/shop/sa/storefront"


class Chroot:
    """The unpacked image with a configuration, certificates and policies in it, and nothing else: no /proc, no /dev."""

    def __init__(self, image, folder):
        self.root = folder / "root"
        self.root.mkdir()
        image.unpack(self.root)
        self.command = image.config["config"]["Entrypoint"] + image.config["config"]["Cmd"]
        authority = world.Authority()
        self.issuers = [world.Issuer(host, authority, folder) for host in ("idp.dns.example", "idp.hosts.example")]
        self.names = world.NameServer([self.issuers[0].host])
        self.ca = authority.pem()
        self.client = authority.issue([x509.UniformResourceIdentifier(SERVICE)], server=False)
        certificate, key = authority.issue([x509.DNSName("gatepost.shop.example")], server=True)
        self.put("etc/gatepost/tls/tls.crt", certificate)
        self.put("etc/gatepost/tls/tls.key", key)
        self.put("etc/gatepost/tls/ca.crt", self.ca)
        for file in (ROOT / "policies").iterdir():
            if file.is_file():
                self.put(f"etc/gatepost/policies/{file.name}", file.read_bytes())
        self.configure("config", jwks_ca="/etc/gatepost/tls/ca.crt")
        # What the cluster puts there: one issuer is found by the name server, the other in the list.
        self.put("etc/resolv.conf", f"nameserver {world.NAME_SERVER}\n".encode())
        self.put("etc/hosts", f"127.0.0.1 {self.issuers[1].host}\n".encode())

    def put(self, name, data):
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        os.chown(file, 0, USER)
        file.chmod(0o440)

    def configure(self, folder, **issuer):
        settings = {
            "server": {
                "listen": "127.0.0.1:0", "ops_listen": "127.0.0.1:0", "certificate": "/etc/gatepost/tls/tls.crt",
                "private_key": "/etc/gatepost/tls/tls.key", "client_ca": "/etc/gatepost/tls/ca.crt",
            },
            "identity": {"trust_domains": ["shop.example"]},
            "callers": [{
                "spiffe_id": SERVICE, "name": "storefront", "resource_types": ["Account"], "actions": ["Account.*"],
                "supply_attributes": ["Account"], "sees_policies": True, "tenants": ["acme"],
                "presents_for": [{"issuer": it.issuer, "client": world.CLIENT} for it in self.issuers],
            }],
            "issuers": [{
                "issuer": it.issuer, "audiences": [world.AUDIENCE], "algorithms": ["ES256"], "jwks_url": it.url(),
                "allow_private_addresses": True, **issuer,
                "principal": {
                    "type": "User", "shared_type": True,
                    "attributes": {"tenant": {"claim": "tenant", "entity": "Tenant"}},
                },
            } for it in self.issuers],
            "policies": {"directory": "/etc/gatepost/policies", "tenant_type": "Tenant"},
            "audit": {"spool": {"directory": "/var/lib/gatepost/audit"}},
        }  # fmt: skip
        self.put(f"etc/gatepost/{folder}/gatepost.yaml", yaml.safe_dump(settings).encode())

    def run(self, *arguments):
        """Another command of the image, to its end."""
        command = ["chroot", f"--userspec={USER}:{USER}", "--groups=", self.root, self.command[0], *arguments]
        return subprocess.run(command, env=PATHS, capture_output=True, text=True, timeout=PATIENCE)


class Running:
    """The image's own command, as the image's user, on a root that nobody can write to but for the spool's volume."""

    def __init__(self, chroot, folder):
        self.chroot, self.heard = chroot, []
        place = chroot.root / "etc/gatepost/notify"
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(place))
        place.chmod(0o666)
        self.manager.settimeout(PATIENCE)
        self.log = folder / "log"
        mounts = (
            'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && mount -t tmpfs -o mode=0750,uid=65532,gid=65532 none '
            '"$1/var/lib/gatepost" && root=$1 && shift && exec chroot --userspec=65532:65532 --groups= "$root" "$@"'
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", mounts, "sh", chroot.root, *chroot.command],
                env={**PATHS, "NOTIFY_SOCKET": "/etc/gatepost/notify"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def until(self, word):
        while word not in self.heard:
            try:
                self.heard += self.manager.recv(4096).decode().splitlines()
            except TimeoutError:
                raise AssertionError(f"no {word} in {PATIENCE} s: {self.heard}\n{self.log.read_text()}") from None

    def status(self):
        return [line.removeprefix("STATUS=") for line in self.heard if line.startswith("STATUS=")][-1]

    def records(self):
        """Of decisions; read from within its own mounts."""
        spool = pathlib.Path(f"/proc/{self.process.pid}/root/var/lib/gatepost/audit")
        lines = [line for segment in sorted(spool.glob("segment-*")) for line in segment.read_text().splitlines()]
        return [record for record in map(json.loads, lines) if record.get("class_uid") == 6003]
