"""An OCI archive as the specification describes it, read without the tools that made it."""

import gzip
import hashlib
import io
import json
import tarfile


class Image:
    """Every digest and size on the way to the files is checked: a wrong one ends the test."""

    def __init__(self, path):
        with tarfile.open(path) as archive:
            self.members = archive.getmembers()
            self.blobs = {it.name: archive.extractfile(it).read() for it in self.members if it.isfile()}
        assert json.loads(self.blobs["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}, "not an OCI layout"
        (described,) = json.loads(self.blobs["index.json"])["manifests"]
        self.tag = described["annotations"]["org.opencontainers.image.ref.name"]
        self.digest = described["digest"]
        self.manifest = json.loads(self._blob(described))
        self.config = json.loads(self._blob(self.manifest["config"]))
        (layer,) = self.manifest["layers"]
        assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip", layer
        self.layer = gzip.decompress(self._blob(layer))
        (diff_id,) = self.config["rootfs"]["diff_ids"]
        assert diff_id == "sha256:" + hashlib.sha256(self.layer).hexdigest(), "the layer is not the one of the configuration"

    def _blob(self, descriptor):
        algorithm, digest = descriptor["digest"].split(":")
        data = self.blobs[f"blobs/{algorithm}/{digest}"]
        assert len(data) == descriptor["size"] and hashlib.sha256(data).hexdigest() == digest, descriptor
        return data

    def files(self):
        with tarfile.open(fileobj=io.BytesIO(self.layer)) as layer:
            return {it.name: it for it in layer.getmembers()}

    def unpack(self, folder):
        with tarfile.open(fileobj=io.BytesIO(self.layer)) as layer:
            # As root: with the owners and modes that the layer names.
            layer.extraction_filter = lambda member, _: member
            layer.extractall(folder, numeric_owner=True)


def interpreter(elf):
    """Whether a 64-bit ELF file asks for a program to load it (PT_INTERP): a static one does not."""
    assert elf[:5] == b"\x7fELF\x02", "no 64-bit ELF file"
    start = int.from_bytes(elf[32:40], "little")
    size, count = (int.from_bytes(elf[at : at + 2], "little") for at in (54, 56))
    headers = (elf[start + number * size :][:4] for number in range(count))
    return any(int.from_bytes(header, "little") == 3 for header in headers)
