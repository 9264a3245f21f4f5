"""Images of one static program each, and how an image gets into the cluster: from a file, since no registry of images is needed."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

from cluster.configuration import PAUSE_IMAGE
from cluster.place import Place

PROBE_IMAGE = "localhost/probe:1"


def load_own(place: Place) -> None:
    """Brings the sandbox's and the tests' image into containerd."""
    for image, program in ((PAUSE_IMAGE, "pause"), (PROBE_IMAGE, "probe")):
        archive = place.state / f"{program}.tar"
        write_archive(archive, place.bin / program, image)
        load(place, archive)
        archive.unlink()


def load(place: Place, archive: Path) -> None:
    """Imports a docker or OCI archive; pods name its images with `imagePullPolicy: IfNotPresent` or `Never`."""
    ctr(place, "images", "import", "--snapshotter=overlayfs", str(archive))


def write_archive(archive: Path, program: Path, image: str) -> None:
    """Writes a docker archive of an image that holds one program, its entrypoint."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        add(files, program.name, program.read_bytes(), mode=0o755)
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        files.addfile(folder)
    named = digest(layer.getvalue())
    content = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65532:65532", "WorkingDir": "/tmp"},
        "rootfs": {"type": "layers", "diff_ids": [named]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [image], "Layers": [f"{named[7:]}.tar"]}]
    with tarfile.open(archive, mode="w") as files:
        add(files, f"{named[7:]}.tar", layer.getvalue())
        add(files, "config.json", json.dumps(content).encode())
        add(files, "manifest.json", json.dumps(manifest).encode())


def digest(content: bytes) -> str:
    """As an image's parts are named."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def add(files: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """Adds a file to an archive."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    files.addfile(entry, io.BytesIO(content))


def command(place: Place, *words: str) -> list[str]:
    """A command for containerd's images, as the kubelet sees them."""
    return ["ctr", "--address", str(place.containerd_socket), "--namespace", "k8s.io", *words]


def ctr(place: Place, *words: str) -> str:
    """What such a command prints."""
    return subprocess.run(command(place, *words), check=True, capture_output=True, text=True).stdout
