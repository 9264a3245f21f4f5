"""How Atelier's images get into the cluster: only the layers that it has not, so that a change of code takes seconds.

The builder writes them, uncompressed, into an OCI layout (a folder with an index, and blobs named by their digests) and skips the blobs that
are there. What containerd lacks of them is piped into it as one archive. A blob that it has taken becomes a hard link to containerd's own
file, so that the disk holds each layer once as a blob and once unpacked, beside the builder's copy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

from cluster import images, tools
from cluster.place import Place

ROOT = Path(__file__).parents[2]
NAMES = ("control", "trainer", "converter", "compiler", "node")
# What a kubelet makes of the chart's `atelier/control`. Nothing asks that registry: the image is present, and the policy IfNotPresent.
PREFIX = "docker.io/atelier"
# Those that write a layout from the outside; docker keeps its images where nobody reaches them in parts.
BUILDERS = ("buildah", "podman")


class NoImages(Exception):
    """An image could not be built or brought in."""


def bring_in(place: Place) -> list[str]:
    """Builds what is stale of the images and brings them in; the digests that containerd lacked."""
    if not any(map(tools.program, BUILDERS)):
        tools.install(["buildah", "debootstrap"])
    if subprocess.run([sys.executable, "images/build.py"], cwd=ROOT).returncode:
        raise NoImages("`make images` failed; what it said stands above")
    folder = place.state / "images"
    write_layout(folder)
    return deliver(place, folder)


def write_layout(folder: Path) -> None:
    """Writes the images as they are built now, and removes blobs that were of earlier ones."""
    builder = next(filter(tools.program, BUILDERS))
    if (folder / "index.json").exists():  # an image that was built anew would stand there twice
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": []}))
    for name in NAMES:
        image = f"localhost/atelier/{name}:{version('atelier')}"
        words = [builder, "push", "--quiet", "--disable-compression", image, f"oci:{folder}:{name}"]
        subprocess.run(words, check=True, capture_output=True, text=True)
    needed = blobs(folder)
    for path in (folder / "blobs" / "sha256").iterdir():
        if f"sha256:{path.name}" not in needed:
            path.unlink()


def blobs(folder: Path) -> set[str]:
    """The digests of all that the images of a layout are made of."""
    found = set()
    for entry in _index(folder)["manifests"]:
        manifest = json.loads(_blob(folder, entry["digest"]).read_text())
        found |= {entry["digest"], manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])}
    return found


def deliver(place: Place, folder: Path) -> list[str]:
    """Brings the images of a layout into containerd, under the names that the chart has for them; the digests that it lacked."""
    there = images.ctr(place, "content", "ls", "--quiet").split()
    lacking = sorted(blobs(folder) - set(there))
    command = images.command(place, "images", "import", "--snapshotter=overlayfs", "-")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as importing:
        assert importing.stdin
        with tarfile.open(fileobj=importing.stdin, mode="w|") as archive:
            _add(archive, "oci-layout", (folder / "oci-layout").read_bytes())
            _add(archive, "index.json", json.dumps(_named(_index(folder))).encode())
            for digest in lacking:
                archive.add(_blob(folder, digest), f"blobs/sha256/{digest.removeprefix('sha256:')}")
        importing.stdin.close()
    if importing.returncode:
        raise NoImages("containerd did not take the images; what it said stands above")
    _link(place, folder)
    _forget_the_replaced(place)
    return lacking


def _named(index: Mapping[str, Any]) -> Mapping[str, Any]:
    """An index with the name of each image in the cluster."""
    entries = []
    for entry in index["manifests"]:
        name = f"{PREFIX}/{entry['annotations']['org.opencontainers.image.ref.name']}:{version('atelier')}"
        entries.append({**entry, "annotations": {"io.containerd.image.name": name}})
    return {**index, "manifests": entries}


def _link(place: Place, folder: Path) -> None:
    """Replaces the layout's blobs by containerd's own files, which is one file system with it."""
    theirs = place.state / "containerd" / "io.containerd.content.v1.content" / "blobs" / "sha256"
    for path in (folder / "blobs" / "sha256").iterdir():
        same = theirs / path.name
        if same.exists() and not same.samefile(path):
            path.unlink()
            path.hardlink_to(same)


def _forget_the_replaced(place: Place) -> None:
    """Removes images that no name leads to any more: the kubelet's runtime keeps each under its own digest too."""
    rows = [line.split() for line in images.ctr(place, "images", "ls").splitlines()[1:]]
    named = {row[2] for row in rows if not row[0].startswith("sha256:")}
    replaced = [row[0] for row in rows if row[2] not in named]
    if replaced:
        images.ctr(place, "images", "rm", *replaced)


def _index(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return found


def _blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / digest.replace(":", "/")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, BytesIO(content))
