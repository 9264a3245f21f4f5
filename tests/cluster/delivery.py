"""How Atelier's images get into the cluster: only the layers that it has not, so that a change of code takes seconds.

The builder keeps each layer once and can print it again, as the bytes that its digest is of (`containers-storage diff`). What containerd
lacks is piped into it from there, as one archive that is nowhere on the disk: no registry, no compression, nothing to clean up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster import images, tools
from cluster.place import Place

ROOT = Path(__file__).parents[2]
NAMES = ("control", "trainer", "converter", "compiler", "node")
# What a kubelet makes of the chart's `atelier/control`. Nothing asks that registry: the image is present, and the policy IfNotPresent.
PREFIX = "docker.io/atelier"
# Those that keep their layers where `containers-storage` finds them; docker does not.
BUILDERS = ("buildah", "podman")


class NoImages(Exception):
    """An image could not be built or brought in."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image as the builder has it."""

    name: str
    """In the cluster."""
    manifest: bytes
    configuration: bytes
    layers: dict[str, str]
    """Digest of a layer -> its name in the builder's storage."""

    @classmethod
    def built(cls, name: str) -> Image:
        """The newest of that name."""
        local, tag = f"localhost/atelier/{name}", version("atelier")
        manifest = _storage("get-image-data", f"{local}:{tag}", "manifest")
        top = json.loads(_storage("image", "--json", f"{local}:{tag}"))[0]["layer"]
        configuration = _storage("get-image-data", f"{local}:{tag}", json.loads(manifest)["config"]["digest"])
        return cls(name=f"{PREFIX}/{name}:{tag}", manifest=manifest, configuration=configuration, layers=_chain(top))

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.manifest)
        return found


def bring_in(place: Place, only: Sequence[str] = ()) -> int:
    """Builds what is stale of the images, all or some, and brings them in; how many layers the cluster lacked."""
    missing = [] if any(map(tools.program, BUILDERS)) else ["buildah", "debootstrap"]
    missing += [] if tools.program("containers-storage") else ["containers-storage"]
    if missing:
        tools.install(missing)
    names = [word for name in only for word in ("--only", name)]
    if subprocess.run([sys.executable, "images/build.py", *names], cwd=ROOT).returncode:
        raise NoImages("`make images` failed; what it said stands above")
    return deliver(place, [Image.built(name) for name in only or NAMES])


def deliver(place: Place, built: Sequence[Image]) -> int:
    """Brings images into containerd; how many layers it lacked."""
    there = set(images.ctr(place, "content", "ls", "--quiet").split())
    lacking = {layer["digest"]: layer["size"] for image in built for layer in image.content["layers"] if layer["digest"] not in there}
    names = {digest: name for image in built for digest, name in image.layers.items()}
    command = images.command(place, "images", "import", "--snapshotter=overlayfs", "-")
    importing = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    # A pipe that breaks is not what went wrong: the other side says that.
    with suppress(BrokenPipeError), importing, tarfile.open(fileobj=importing.stdin, mode="w|") as archive:
        _describe(archive, built)
        for digest, size in lacking.items():
            _add_layer(archive, digest, size, names[digest])
    if importing.wait():
        raise NoImages("containerd did not take the images; what it said stands above")
    _forget_the_replaced(place)
    return len(lacking)


def _describe(archive: tarfile.TarFile, built: Sequence[Image]) -> None:
    """All but the layers, in the form of an OCI layout."""
    entries = []
    for image in built:
        digest = images.digest(image.manifest)
        entries.append(
            {
                "mediaType": image.content["mediaType"],
                "digest": digest,
                "size": len(image.manifest),
                "annotations": {"io.containerd.image.name": image.name},
            }
        )
        for content in (image.manifest, image.configuration):
            images.add(archive, _path(images.digest(content)), content)
    images.add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    images.add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": entries}).encode())


def _add_layer(archive: tarfile.TarFile, digest: str, size: int, name: str) -> None:
    entry = tarfile.TarInfo(_path(digest))
    entry.size = size
    with subprocess.Popen(["containers-storage", "diff", "--uncompressed", name], stdout=subprocess.PIPE) as printing:
        archive.addfile(entry, printing.stdout)


def _forget_the_replaced(place: Place) -> None:
    """Removes images that no name leads to any more: the kubelet's runtime keeps each under its own digest too."""
    rows = [line.split() for line in images.ctr(place, "images", "ls").splitlines()[1:]]
    named = {row[2] for row in rows if not row[0].startswith("sha256:")}
    replaced = [row[0] for row in rows if row[2] not in named]
    if replaced:
        images.ctr(place, "images", "rm", *replaced)


def _chain(top: str) -> dict[str, str]:
    """The layers under one, with it, by digest."""
    known = {layer["id"]: layer for layer in json.loads(_storage("layers", "--json"))}
    found = {}
    while top:
        found[known[top]["diff-digest"]] = top
        top = known[top].get("parent", "")
    return found


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _storage(*words: str) -> bytes:
    return subprocess.run(["containers-storage", *words], check=True, capture_output=True).stdout
