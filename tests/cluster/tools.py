"""The programs: Go modules built into the cache, the rest from the system's packages."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.place import Place

SOURCES = Path(__file__).parent / "tools"
GO = (1, 26)

# Program -> the Debian package that brings it.
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "openssl": "openssl",
    "mount": "mount",
}
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
CNI_PLUGINS = ("ptp", "host-local", "loopback")


class MissingTool(Exception):
    """Something is missing that cannot be installed from here."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """A Go module of tools/ and the commands that are built from it."""

    folder: str
    commands: dict[str, str]
    """Name of the program -> its package."""
    version: str = ""
    """Stamped into Kubernetes' programs, which otherwise call themselves v0.0.0 and are refused by clients."""

    @property
    def source(self) -> Path:
        return SOURCES / self.folder

    @property
    def flags(self) -> list[str]:
        stamp = ""
        if self.version:
            major, minor = self.version.removeprefix("v").split(".")[:2]
            names = {"gitVersion": self.version, "gitMajor": major, "gitMinor": minor}
            stamp = "".join(f" -X k8s.io/component-base/version.{name}={value}" for name, value in names.items())
        return ["-ldflags", f"-s -w{stamp}"]

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(" ".join([*self.flags, *self.commands]).encode())
        for path in sorted(self.source.iterdir()):
            digest.update(path.read_bytes())
        return digest.hexdigest()


KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet")
MODULES = (
    Module(folder="pause", commands={"pause": "."}),
    Module(folder="probe", commands={"probe": "."}),
    Module(folder="etcd", commands={"etcd": "go.etcd.io/etcd/server/v3"}),
    Module(folder="kubernetes", commands={name: f"k8s.io/kubernetes/cmd/{name}" for name in KUBERNETES}, version="v1.37.2"),
    Module(folder="coredns", commands={"coredns": "github.com/coredns/coredns"}),
    Module(folder="kwok", commands={"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
    Module(folder="helm", commands={"helm": "helm.sh/helm/v4/cmd/helm"}),
)
# Stages of kwok that make a fake node ready, renew its lease, and let its pods run and its Jobs complete.
STAGES = ("node/fast", "node/heartbeat-with-lease", "pod/fast")


def install_packages() -> Path:
    """Installs the system's packages that are missing; returns the folder of the CNI plugins."""
    missing = sorted({package for name, package in PACKAGES.items() if not program(name)})
    if _cni_folder() is None:
        missing.append("containernetworking-plugins")
    if missing:
        install(missing)
    folder = _cni_folder()
    if folder is None:
        raise MissingTool(f"no folder of {', '.join(map(str, CNI_FOLDERS))} has the CNI plugins {', '.join(CNI_PLUGINS)}")
    return folder


def install(packages: Sequence[str]) -> None:
    """Installs packages of Debian."""
    if not shutil.which("apt-get"):
        raise MissingTool(f"install these with the system's package manager (names of Debian): {' '.join(packages)}")
    print(f"installing {' '.join(packages)}", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "--no-install-recommends", *packages]
    # Without fresh lists an old machine asks for packages that are gone.
    if subprocess.run(install, env=quiet, capture_output=True).returncode:
        subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=True)
        subprocess.run(install, env=quiet, check=True, stdout=subprocess.DEVNULL)


def build(place: Place, wanted: set[str] | None = None) -> None:
    """Builds what the cache has not, or has of other sources; all modules, or those that have a wanted program."""
    for module in MODULES:
        if wanted is None or wanted & set(module.commands):
            _build_module(place, module)


def program(name: str) -> str | None:
    """Where a program of the system is."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def stages(place: Place) -> Path:
    """The file with kwok's stages, which `build` puts beside its program."""
    return place.cache / "kwok-stages.yaml"


def _build_module(place: Place, module: Module) -> None:
    stamp = place.cache / f"{module.folder}.stamp"
    built = all((place.bin / name).exists() for name in module.commands)
    if built and stamp.exists() and stamp.read_text() == module.fingerprint:
        return
    go = _go()
    print(f"building {' '.join(module.commands)}", end=" ", flush=True)
    began = time.monotonic()
    place.bin.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    # A folder as the target names each program after its package's last part: right for many, not for one ("v3", ".").
    target = f"{place.bin}/" if len(module.commands) > 1 else str(place.bin / next(iter(module.commands)))
    static = {**os.environ, "CGO_ENABLED": "0"}
    command = [go, "-C", str(module.source), "build", *module.flags, "-o", target, *module.commands.values()]
    subprocess.run(command, env=static, check=True)
    if module.folder == "kwok":
        _copy_stages(place, go, module)
    stamp.write_text(module.fingerprint)
    print(f"({time.monotonic() - began:.0f} s)", flush=True)


def _copy_stages(place: Place, go: str, module: Module) -> None:
    listed = [go, "-C", str(module.source), "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"]
    folder = Path(subprocess.run(listed, check=True, capture_output=True, text=True).stdout.strip()) / "kustomize" / "stage"
    documents = []
    for stage in STAGES:
        documents += [path.read_text() for path in sorted((folder / stage).glob("*.yaml")) if path.name != "kustomization.yaml"]
    stages(place).write_text("\n---\n".join(documents))


def _go() -> str:
    needed = ".".join(map(str, GO))
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if not go:
        raise MissingTool(f"Go {needed} or newer is needed to build Kubernetes: https://go.dev/dl")
    said = subprocess.run([go, "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout.strip()
    version = re.match(r"go(\d+)\.(\d+)", said)
    if not version or tuple(map(int, version.groups())) < GO:
        raise MissingTool(f"Go {needed} or newer is needed to build Kubernetes, {go} is {said}")
    return go


def _cni_folder() -> Path | None:
    return next((folder for folder in CNI_FOLDERS if all((folder / plugin).exists() for plugin in CNI_PLUGINS)), None)
