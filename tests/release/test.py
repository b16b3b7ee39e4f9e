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
import subprocess
import sys
import tempfile
import time

import grpc

sys.dont_write_bytecode = True
from container import PATIENCE, ROOT, USER, Chroot, Running
from image import Image, interpreter

BUILD = ROOT / "target" / "rehearsal"
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
        [ROOT / "packaging/release", "--install-tools", "--profile", "rehearsal", "--out", out, "--target-dir", BUILD,
         # Tries that the soak works, and says nothing about what grows.
         "--soak", "4s"],
        check=True,
    )  # fmt: skip
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
    equal({name: (it.mode & 0o7777, it.uid) for name, it in names.items()}, CONTENT, "the files, their modes and owners")
    equal({it.mtime for it in files.values()}, {int(facts["SOURCE_DATE_EPOCH"])}, "the files' times")
    config = image.config["config"]
    equal(config["User"], f"{USER}:{USER}", "the user")
    equal(set(config["ExposedPorts"]), {"8443/tcp", "9443/tcp"}, "the ports")
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    equal(labels["version"], facts["GATEPOST_VERSION"], "the version")
    equal(labels["revision"], facts["GATEPOST_REVISION"], "the revision")
    assert {"title", "description", "licenses", "created"} <= labels.keys(), labels
    chart = ROOT / "helm/gatepost"
    arguments = "args: [" + ", ".join(config["Cmd"]) + "]"
    for file, words in (("templates/_container.tpl", arguments), ("values.yaml", f"runAsUser: {USER}")):
        assert words in (chart / file).read_text(), f"the chart runs the image in the same way: {words} in {file}"
    equal(image.tag, facts["GATEPOST_VERSION"], "the tag")


def the_dockerfile_makes_one_of_the_same_kind(image):
    """Nothing builds it here, where no base image can be had; so what it says is compared."""
    said = (ROOT / "Dockerfile").read_text().replace('" \\\n      ', '"\nLABEL ').splitlines()
    config = image.config["config"]
    labels = {key: value for key, value in config["Labels"].items() if not key.endswith((".revision", ".created"))}
    for line in [
        f"USER {config['User']}", f"WORKDIR {config['WorkingDir']}", f"STOPSIGNAL {config['StopSignal']}",
        "EXPOSE " + " ".join(sorted(port.removesuffix("/tcp") for port in config["ExposedPorts"])),
        f"ENTRYPOINT {json.dumps(config['Entrypoint'])}", f"CMD {json.dumps(config['Cmd'])}",
        *(f'LABEL {key}="{value}"' for key, value in labels.items()),
    ]:  # fmt: skip
        assert line in said, f"the Dockerfile lacks {line}"
    rust = [line for line in (ROOT / "Cargo.toml").read_text().splitlines() if line.startswith("rust-version")]
    assert any(f"rust:{rust[0].split(chr(34))[1]}-" in line for line in said), "the Dockerfile's toolchain is Cargo.toml's"


def the_list_of_parts_names_them_and_no_folder_of_this_machine(path):
    text = path.read_text()
    bom = json.loads(text)
    names = {it["name"] for it in bom["components"]}
    assert {"aws-lc-sys", "cedar-policy", "glibc", "rustls", "tonic"} <= names, sorted(names)
    assert not {"proptest", "jsonschema", "protox"} & names, "what only tests and builds use is not in it"
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
    equal(chroot.run(*roots).returncode, 64, "and missed where there are none")
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
    the_dockerfile_makes_one_of_the_same_kind(image)
    with tempfile.TemporaryDirectory(prefix="gatepost-") as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        (deb,) = out.glob("*.deb")
        the_package_holds_the_same_binary(deb, binary, folder / "deb")
        it_answers_in_an_empty_root_over_mutual_tls(image, folder)
    print(f"image {image.digest}: {len(image.layer)} bytes unpacked; its binary answered in an empty root")


main()
