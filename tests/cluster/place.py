"""Where the cluster is: its folders, addresses and ports. Nothing of it is outside of these but what place.SYSTEM_FOLDERS lists."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

NODE_NAME = "host"
INTERFACE = "atelier0"
# An interface of its own carries the node's address: pods cannot reach loopback, and nothing has to listen on the machine's real addresses.
NODE_ADDRESS = "10.205.0.1"
POD_RANGE = "10.203.0.0/16"
SERVICE_RANGE = "10.204.0.0/16"
FAKE_RANGE = "10.206.0.0/16"
CGROUP = "atelier-cluster"

# Below the ephemeral ports, above the well-known ones, and none of Ray's (10002 to 19999).
PORTS = range(26400, 26440)
PORT_NAMES = (
    "apiserver",
    "etcd",
    "etcd-peer",
    "scheduler",
    "controller-manager",
    "kubelet",
    "kubelet-health",
    "proxy-health",
    "proxy-metrics",
    "coredns-health",
    "kwok",
)

# Names that kubelet, containerd and CNI have compiled in. Those that were not there before the cluster are removed with it; of the shared
# ones only what is the cluster's.
SHARED_FOLDERS = (Path("/run/containerd"), Path("/var/lib/cni"))
SYSTEM_FOLDERS = (*SHARED_FOLDERS, Path("/var/lib/kubelet"), Path("/var/log/containers"), Path("/var/log/pods"))


class NoFreePort(Exception):
    """Fewer ports are free than the cluster needs."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Folders of one cluster."""

    cache: Path
    """Programs and images: stays when the cluster goes."""
    state: Path = Path("/var/lib/atelier-cluster")
    """What is written: etcd, images, volumes, logs. Not on tmpfs: images take gigabytes."""
    run: Path = Path("/run/atelier-cluster")
    """Sockets and mounts: a short name, since a socket's path ends at 107 bytes."""

    @property
    def bin(self) -> Path:
        return self.cache / "bin"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def secrets(self) -> Path:
        return self.state / "secrets"

    @property
    def configuration(self) -> Path:
        return self.state / "configuration"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def server(self) -> str:
        return f"https://{NODE_ADDRESS}:{self.ports['apiserver']}"

    @cached_property
    def ports(self) -> dict[str, int]:
        """The port of each name; chosen once, then the same until the cluster is gone."""
        record = self.state / "ports.json"
        if record.exists():
            return dict(json.loads(record.read_text()))
        free = [port for port in PORTS if _is_free(port)]
        if len(free) < len(PORT_NAMES):
            raise NoFreePort(f"{len(PORT_NAMES)} ports are needed, and of {PORTS.start} to {PORTS.stop - 1} only {len(free)} are free")
        chosen = dict(zip(PORT_NAMES, free, strict=False))
        self.state.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(chosen))
        return chosen


def default_place() -> Place:
    """The place that this user's environment asks for."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Place(cache=cache / "atelier" / "cluster")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True
