"""`make images`: builds the images with buildah, podman or docker, whichever is there."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGETS = ("control", "trainer", "converter", "compiler", "node")
PYTHON = "python:3.11-slim-bookworm"
DEBIAN = "localhost/atelier-base:bookworm"
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
TRIMMED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/apt/lists", "var/cache/apt", "var/log")
"""What a base folder does without."""


def main() -> None:
    """Builds the wheel, the base where there is none to be had, and the targets."""
    parser = argparse.ArgumentParser(prog="make images", description=__doc__)
    parser.add_argument("--base", default=os.environ.get("BASE", ""), help=f"base image; {PYTHON}, or where it cannot be had a Debian")
    parser.add_argument("--torch", default=os.environ.get("TORCH") or "cuda", choices=("cuda", "cpu", "default"))
    parser.add_argument("--tensorrt", default=os.environ.get("TENSORRT") or "0", choices=("0", "1"))
    parser.add_argument("--only", action="append", choices=TARGETS, help="some targets")
    given = parser.parse_args()
    tool = next((name for name in ("buildah", "podman", "docker") if shutil.which(name)), None)
    if tool is None:
        sys.exit("images need buildah, podman or docker: `apt-get install buildah`")
    wheel()
    arguments = {
        "BASE": given.base or base(tool),
        "TORCH": "cuda" if given.torch == "default" else given.torch,
        "TENSORRT": given.tensorrt,
    }
    # The package's stage has a name too, so that it goes when the next one comes.
    build(tool, "package", arguments)
    for target in given.only or TARGETS:
        say(f"== {target}")
        build(tool, target, arguments)
        bill_of_materials(target)


def wheel() -> None:
    """`dist/`: the one wheel that all images install."""
    for old in (ROOT / "dist").glob("*.whl"):
        old.unlink()
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    # The same code gives the same wheel, and the builder takes the layer that it has of it.
    subprocess.run(command, cwd=ROOT, env={**os.environ, "SOURCE_DATE_EPOCH": "315532800"}, check=True)


def base(tool: str) -> str:
    """Python's image where a registry has it, else a Debian 12 with its python3.11, from Debian's own packages."""
    for image in (PYTHON, DEBIAN):
        if _quiet([tool, "inspect", image]):
            return image
    if _quiet([tool, "pull", PYTHON]):
        return PYTHON
    if os.getuid() or not shutil.which("debootstrap"):
        sys.exit(f"no registry has {PYTHON}: name a base (BASE=...), or run as root with debootstrap installed")
    say(f"no registry has {PYTHON}; the base is made by debootstrap")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        include = "--include=ca-certificates,python3,python3-venv"
        subprocess.run(["debootstrap", "--variant=minbase", include, "bookworm", str(root)], check=True, stdout=subprocess.DEVNULL)
        for path in TRIMMED:
            shutil.rmtree(root / path, ignore_errors=True)
            (root / path).mkdir(parents=True)
        _import(tool, root)
    return DEBIAN


def build(tool: str, target: str, arguments: dict[str, str]) -> None:
    """One target, instead of what had its name.

    Where a company signs what its network hands out, `SSL_CERT_FILE` names the authorities for the time of the build.
    """
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    labels = {"version": version("atelier"), "revision": revision or "unknown"}
    name = f"atelier/{target}:{labels['version']}"
    replaced = _id(tool, name)
    command = [tool, "build", "--target", target, "-t", name, "-f", "images/Dockerfile"]
    # Not in the Dockerfile: there each commit would begin the layers below anew.
    command += [word for name, value in labels.items() for word in ("--label", f"org.opencontainers.image.{name}={value}")]
    if tool != "docker":
        command += ["--layers", "--format", "docker", "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4096:4096", "--timestamp", "0"]
        authorities = os.environ.get("SSL_CERT_FILE")
        if authorities:
            command += ["--volume", f"{authorities}:{AUTHORITIES}:ro", "--build-arg", f"PIP_CERT={AUTHORITIES}"]
    for argument, value in arguments.items():
        command += ["--build-arg", f"{argument}={value}"]
    subprocess.run([*command, "."], cwd=ROOT, check=True)
    if replaced and replaced != _id(tool, name):
        _quiet([tool, "rmi", replaced])


def bill_of_materials(target: str) -> None:
    """`dist/TARGET.cdx.json`: the Python packages in the image, in CycloneDX's form, as the lock has them."""
    lock = ROOT / "images" / ("control.txt" if target == "control" else "ml.txt")
    bill = ROOT / "dist" / f"{target}.cdx.json"
    newest = max(path.stat().st_mtime for path in (lock, ROOT / "pyproject.toml"))
    if bill.exists() and bill.stat().st_mtime > newest:
        return
    command = [str(Path(sys.executable).with_name("cyclonedx-py")), "requirements", str(lock), "--pyproject", "pyproject.toml"]
    subprocess.run([*command, "-o", str(bill)], cwd=ROOT, check=True)


def _import(tool: str, root: Path) -> None:
    if tool == "buildah":
        container = subprocess.run(["buildah", "from", "scratch"], capture_output=True, text=True, check=True).stdout.strip()
        subprocess.run(["buildah", "add", "-q", container, str(root), "/"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["buildah", "commit", "-q", "--rm", container, DEBIAN], check=True, stdout=subprocess.DEVNULL)
        return
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run([tool, "import", "-", DEBIAN], stdin=tar.stdout, check=True, stdout=subprocess.DEVNULL)


def say(line: str) -> None:
    """A line of progress."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _id(tool: str, image: str) -> str:
    asked = subprocess.run([tool, "images", "-q", "--no-trunc", image], capture_output=True, text=True, check=False)
    return asked.stdout.strip().removeprefix("sha256:")


def _quiet(command: list[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


if __name__ == "__main__":
    main()
