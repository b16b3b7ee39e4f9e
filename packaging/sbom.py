"""Makes of cargo-cyclonedx's list one of what is in the binary, that does not say where it was made.

    python3 packaging/sbom.py --root FOLDER --crates FILE --arch amd64 <from-cargo.json >sbom.json

It lists crates that only a test's features bring in, since `cargo metadata` does; `cargo tree` knows better. And the
binary is static, so Debian's C library is in it: a scanner that knows Rust crates alone would miss its holes.
"""

import argparse
import json
import subprocess
import sys


def package_of(name, architecture, path):
    """The component for an installed package of Debian's, and how the dependency is called."""
    fields = "${source:Package}\t${source:Version}"
    shown = subprocess.run(["dpkg-query", "--show", "--showformat", fields, name], check=True, capture_output=True, text=True)
    source, version = shown.stdout.split("\t")
    reference = f"pkg:deb/debian/{source}@{version}?arch={architecture}"
    return {
        "type": "library",
        "bom-ref": reference,
        "name": source,
        "version": version,
        "description": path,
        "purl": reference.replace("+", "%2B"),
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--root", required=True, help="the folder that the list was made in")
    arguments.add_argument("--crates", required=True, help="the crates that are compiled in, `name vVERSION` a line")
    arguments.add_argument("--arch", required=True, help="amd64 or arm64")
    chosen = arguments.parse_args()

    bom = json.loads(sys.stdin.read().replace(f"path+file://{chosen.root}", "path+file:///build/gatepost"))
    # Random, or the time: neither is a fact about the binary. (Optional in the format.)
    bom.pop("serialNumber", None)
    this = bom["metadata"]["component"]
    with open(chosen.crates, encoding="utf-8") as lines:
        linked = {tuple(line.split()[:2]) for line in lines}
    kept = [it for it in bom["components"] if (it["name"], "v" + it["version"]) in linked]
    if missing := {name for name, _ in linked} - {it["name"] for it in kept} - {this["name"]}:
        sys.exit(f"crates that cargo-cyclonedx does not list: {sorted(missing)}")
    added = [
        package_of("libc6-dev", chosen.arch, "the C library, linked statically"),
        package_of("ca-certificates", chosen.arch, "the roots in the image's /etc/ssl/certs"),
    ]
    bom["components"] = sorted(kept + added, key=lambda it: it["bom-ref"])
    there = {it["bom-ref"] for it in bom["components"]} | {this["bom-ref"]}
    bom["dependencies"] = [it for it in bom["dependencies"] if it["ref"] in there]
    for dependency in bom["dependencies"]:
        depends = [it for it in dependency.get("dependsOn", []) if it in there]
        if dependency["ref"] == this["bom-ref"]:
            depends = depends + [it["bom-ref"] for it in added]
        dependency["dependsOn"] = sorted(depends)
    bom["dependencies"].extend({"ref": it["bom-ref"]} for it in added)
    bom["dependencies"].sort(key=lambda it: it["ref"])
    if chosen.root in (text := json.dumps(bom, indent=2, sort_keys=True)):
        sys.exit(f"the list still names {chosen.root}")
    print(text)


main()
