"""The release script makes an image whose binary, in an empty root of its own, answers a question over mutual TLS; and it makes
the same bytes of the same inputs.

    python tests/release/test.py

Builds with the profile `rehearsal`: the same steps as a release, and less optimisation. `packaging/release --twice` compares
two whole builds. Needs root, to enter another root and another user, and the packages in tests/requirements.txt.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import grpc
import yaml
from cryptography import x509

sys.dont_write_bytecode = True
import world
from image import Image, interpreter

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "target" / "rehearsal"
USER = 65532
PATIENCE = 60
SERVICE = "spiffe://shop.example/ns/shop/sa/storefront"
# What alice may see of her own account: README.md has the same.
GRANTED = {
    "address.city", "address.country", "address.street", "display_name", "email", "phone", "plan", "role"
}  # fmt: skip
# All that is in the image; whatever else comes in has to come in here first.
CONTENT = {
    "etc/": (0o755, 0), "etc/group": (0o644, 0), "etc/nsswitch.conf": (0o644, 0), "etc/passwd": (0o644, 0),
    "etc/ssl/": (0o755, 0), "etc/ssl/certs/": (0o755, 0), "etc/ssl/certs/ca-certificates.crt": (0o644, 0),
    "tmp/": (0o1777, 0), "usr/": (0o755, 0), "usr/bin/": (0o755, 0), "usr/bin/gatepost": (0o755, 0), "usr/share/": (0o755, 0),
    "usr/share/doc/": (0o755, 0), "usr/share/doc/gatepost/": (0o755, 0), "usr/share/doc/gatepost/LICENSE": (0o644, 0),
    "usr/share/sbom/": (0o755, 0), "usr/share/sbom/gatepost.cdx.json": (0o644, 0),
    "var/": (0o755, 0), "var/lib/": (0o755, 0), "var/lib/gatepost/": (0o750, USER),
}  # fmt: skip


def equal(left, right, what):
    assert left == right, f"{what}: {left!r} is not {right!r}"


def the_release_script_makes_what_it_says(out):
    subprocess.run(
        [ROOT / "packaging/release", "--install-tools", "--profile", "rehearsal", "--out", out, "--target-dir", BUILD],
        check=True,
    )
    subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=out, check=True)
    listed = {line.split()[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    equal(listed, {it.name for it in out.iterdir()} - {"SHA256SUMS"}, "SHA256SUMS lists every file")
    (binary,) = (it for it in out.iterdir() if it.name.startswith("gatepost-") and it.name + ".debug" in listed)
    return binary


def the_same_binary_makes_the_same_image_and_package(binary, out, facts):
    """Later, with another mask and another time zone."""
    again = out / "again"
    again.mkdir()
    environment = {**os.environ, **facts, "TZ": "Pacific/Chatham"}
    sbom = binary.parent / (binary.name + ".cdx.json")
    image = again / (binary.name + ".oci.tar")
    for command in (["image", "--out", image], ["deb", "--out", again]):
        program, *target = command
        subprocess.run(
            [ROOT / "packaging" / program, "--binary", binary, "--sbom", sbom, *target],
            check=True, env=environment, umask=0o077, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    for file in again.iterdir():
        equal(file.read_bytes() == (out / file.name).read_bytes(), True, f"{file.name} is the same the second time")
    equal(len(list(again.iterdir())), 2, "an image and a package")
    shutil.rmtree(again)


def the_image_holds_what_it_should_and_says_how_it_runs(image, facts):
    files = image.files()
    names = {name + ("/" if it.isdir() else ""): it for name, it in files.items()}
    equal({name: (it.mode, it.uid) for name, it in names.items()}, CONTENT, "the files, their modes and owners")
    equal({it.mtime for it in files.values()}, {int(facts["SOURCE_DATE_EPOCH"])}, "the files' times")
    config = image.config["config"]
    equal(config["User"], f"{USER}:{USER}", "the user")
    equal(set(config["ExposedPorts"]), {"8443/tcp", "9443/tcp"}, "the ports")
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    equal(labels["version"], facts["GATEPOST_VERSION"], "the version")
    equal(labels["revision"], facts["GATEPOST_REVISION"], "the revision")
    assert {"title", "description", "licenses", "created"} <= labels.keys(), labels
    workload = (ROOT / "helm/gatepost/templates/workload.yaml").read_text()
    for word in [*config["Cmd"], f"runAsUser: {USER}"]:
        assert word in workload, f"the chart runs the image in the same way: {word} in workload.yaml"
    equal(image.tag, facts["GATEPOST_VERSION"], "the tag")


def the_list_of_parts_names_them_and_no_folder_of_this_machine(path):
    text = path.read_text()
    bom = json.loads(text)
    names = {it["name"] for it in bom["components"]}
    assert {"aws-lc-sys", "cedar-policy", "glibc", "rustls", "tonic", "zstd-sys"} - names <= {"zstd-sys"}, sorted(names)
    lock = (ROOT / "Cargo.lock").read_text()
    for part in bom["components"]:
        if part["purl"].startswith("pkg:cargo/"):
            assert f'name = "{part["name"]}"\nversion = "{part["version"]}"' in lock, part
    for place in (str(ROOT), str(pathlib.Path.home()), "serialNumber"):
        assert place not in text, place


def the_package_holds_the_same_binary(deb, binary, root):
    subprocess.run(["dpkg-deb", "--extract", deb, root], check=True)
    equal((root / "usr/bin/gatepost").read_bytes() == binary.read_bytes(), True, "the package's binary")
    for file in (
        "etc/gatepost/gatepost.yaml", "usr/lib/systemd/system/gatepost.service", "usr/share/bash-completion/completions/gatepost",
        "usr/share/zsh/vendor-completions/_gatepost", "usr/share/fish/vendor_completions.d/gatepost.fish",
        "usr/share/doc/gatepost/copyright",
    ):  # fmt: skip
        assert (root / file).stat().st_size > 0, file


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
        return subprocess.run(command, env={}, capture_output=True, text=True, timeout=PATIENCE)


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
                env={"NOTIFY_SOCKET": "/etc/gatepost/notify"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
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


def stubs(folder):
    from grpc_tools import protoc
    import grpc_tools

    known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = [f"-I{ROOT / 'proto'}", f"-I{known}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    equal(protoc.main(["protoc", *arguments, "gatepost/v1/decision_service.proto"]), 0, "the stubs are generated")
    sys.path.insert(0, str(folder))
    from gatepost.v1 import decision_service_pb2, decision_service_pb2_grpc

    return decision_service_pb2, decision_service_pb2_grpc


def it_answers_in_an_empty_root_over_mutual_tls(image, folder):
    chroot = Chroot(image, folder)
    for entry in ("proc", "dev", "sys", "bin", "lib"):
        assert not (chroot.root / entry).exists(), f"/{entry} is in the root"
    chroot.configure("roots")
    roots = ["serve", "--check", "--config", "/etc/gatepost/roots/gatepost.yaml"]
    checked = chroot.run(*roots)
    equal(checked.returncode, 0, f"the image's own authorities are found: {checked.stderr}")
    (chroot.root / "etc/ssl/certs/ca-certificates.crt").rename(folder / "roots.crt")
    equal(chroot.run(*roots).returncode, 65, "and missed where there are none")
    (folder / "roots.crt").rename(chroot.root / "etc/ssl/certs/ca-certificates.crt")

    running = Running(chroot, folder)
    try:
        running.until("READY=1")
        ask_and_stop(chroot, running, folder)
    finally:
        running.process.kill()
        running.process.wait()


def ask_and_stop(chroot, running, folder):
    address = running.status().rpartition(" ")[2]
    messages, services = stubs(folder)
    certificate, key = chroot.client
    credentials = grpc.ssl_channel_credentials(chroot.ca, key, certificate)
    options = [("grpc.ssl_target_name_override", "gatepost.shop.example")]
    with grpc.secure_channel(address, credentials, options) as channel:
        service = services.DecisionServiceStub(channel)

        def account_of(owner, token):
            resource = messages.Resource(type="Account", id=f"acc-{owner}")
            resource.attributes.update({
                "tenant": {"type": "Tenant", "id": "acme"}, "owner": {"type": "User", "id": owner},
            })  # fmt: skip
            question = messages.CheckRequest(token=token, action="Account.read", resource=resource)
            question.fields.all = True
            return service.Check(question, timeout=10)

        def answer(owner, token):
            """The keys are on their way while the first question comes."""
            deadline = time.monotonic() + PATIENCE
            while (got := account_of(owner, token)).denial.code == messages.DENIAL_CODE_ISSUER_UNAVAILABLE:
                assert time.monotonic() < deadline, running.log.read_text()
                asked.append(got)
            asked.append(got)
            return got

        asked = []
        for issuer in chroot.issuers:
            alice = issuer.token("alice", tenant="acme")
            got = answer("alice", alice)
            equal(got.decision, messages.DECISION_ALLOW, f"alice reads her account, by {issuer.host}")
            equal(set(got.fields.paths), GRANTED, "the fields that are hers to see")
            equal(list(got.determining_policies), ["account.owner-reads"], "why")
            got = answer("bob", alice)
            equal((got.decision, got.denial.code), (messages.DECISION_DENY, messages.DENIAL_CODE_NO_PERMIT), "and not bob's")
            assert issuer.fetched > 0, f"keys of {issuer.host} were fetched"
        assert chroot.issuers[0].host in chroot.names.asked, "the name server was asked"

    with grpc.secure_channel(address, grpc.ssl_channel_credentials(chroot.ca), options) as stranger:
        try:
            services.DecisionServiceStub(stranger).Check(messages.CheckRequest(), timeout=10)
        except grpc.RpcError as error:
            equal(error.code(), grpc.StatusCode.UNAVAILABLE, "without a certificate there is no connection")
        else:
            raise AssertionError("a stranger was answered")

    equal(len(running.records()), len(asked), "one record an answer")
    running.process.send_signal(signal.SIGTERM)
    running.until("STOPPING=1")
    equal(running.process.wait(PATIENCE), 0, f"it drains and ends well: {running.log.read_text()}")


def main():
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            sys.exit("tests/release/test.py must be root in CI")
        print("not root: the image is not tried (sudo python tests/release/test.py)")
        return
    out = BUILD / "dist"
    shutil.rmtree(out, ignore_errors=True)
    binary = the_release_script_makes_what_it_says(out)
    info = dict(line.split(": ", 1) for line in (out / (binary.name + ".buildinfo")).read_text().splitlines())
    facts = {
        "GATEPOST_VERSION": info["version"], "GATEPOST_REVISION": info["revision"],
        "GATEPOST_ARCH": binary.name.rpartition("-")[2], "SOURCE_DATE_EPOCH": info["source-date-epoch"],
    }  # fmt: skip
    the_same_binary_makes_the_same_image_and_package(binary, out, facts)
    equal(interpreter(binary.read_bytes()), False, "the binary asks for a loader")
    equal(interpreter(pathlib.Path("/bin/ls").read_bytes()), True, "and one that does is told apart")
    the_list_of_parts_names_them_and_no_folder_of_this_machine(out / (binary.name + ".cdx.json"))
    image = Image(out / (binary.name + ".oci.tar"))
    the_image_holds_what_it_should_and_says_how_it_runs(image, facts)
    with tempfile.TemporaryDirectory(prefix="gatepost-") as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        (deb,) = out.glob("*.deb")
        the_package_holds_the_same_binary(deb, binary, folder / "deb")
        it_answers_in_an_empty_root_over_mutual_tls(image, folder)
    print(f"image {image.digest}: {len(image.layer)} bytes unpacked; its binary answered in an empty root")


main()
