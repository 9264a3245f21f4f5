"""The cluster's life: everything up, in order; everything gone, in order."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster import cgroups, configuration, images, network, nodes, parts, processes, storage, tools
from cluster.api import Api
from cluster.place import SHARED_FOLDERS, SYSTEM_FOLDERS, Place

AFTER_THE_API_SERVER = (
    parts.controllers,
    parts.scheduler,
    parts.kwok,
    parts.coredns,
    parts.provisioner,
    parts.kubelet,
)
# Stopped in this order: nothing may start a pod again while the pods end.
STOPS = ("kubelet", "kwok", "provisioner", "controller-manager", "scheduler", "kube-proxy", "coredns", "apiserver", "etcd")


class NotRoot(Exception):
    """A kubelet, containers and their network need root."""


class StillMounted(Exception):
    """Something below the cluster's folders cannot be unmounted, so that they are not removed."""


def answering(place: Place, kubeconfig: str) -> str | None:
    """The nodes of the cluster that a kubeconfig (or a list of them) names, as kubectl prints them; None where none answers."""
    kubectl = tools.program("kubectl") or place.bin / "kubectl"
    environment = {**os.environ, "KUBECONFIG": kubeconfig}
    asked = subprocess.run([kubectl, "--request-timeout=5s", "get", "nodes", "-o", "wide"], env=environment, capture_output=True, text=True)
    return asked.stdout if asked.returncode == 0 else None


def up(place: Place) -> list[str]:
    """Starts what does not run; the names of the parts that it had to start."""
    _require_root("make cluster")
    place.state.mkdir(parents=True, exist_ok=True)
    cni_folder = tools.install_packages()
    tools.build(place)
    with _alone(place):
        _record_system_folders(place)
        configuration.write_secrets(place)
        configuration.write(place, cni_folder)
        network.up(place)
        cgroups.create()
        started = _start(place, (parts.containerd, parts.etcd, parts.apiserver))
        images.load_own(place)
        configuration.write_kubeconfig(place)
        api = Api(place.kubeconfig)
        storage.create_class(api)
        started += _start(place, AFTER_THE_API_SERVER)
        nodes.create(api)
        nodes.wait_until_ready(api)
        # It looks for its node once, waits long for one that is not there, and ends when the address changes.
        started += _start(place, [parts.proxy])
        _wait_for_an_account(place, api)
    return started


def down(place: Place) -> None:
    """Removes all of the cluster but the cache; harmless where there is none."""
    _require_root("make cluster-down")
    if not place.state.exists() and not place.run.exists():
        return
    with _alone(place):
        processes.stop(place, STOPS)
        cgroups.kill_all()
        # containerd and its shims last: they would start nothing, but they reap what has just ended.
        processes.kill_all(place)
        _unmount(place)
        network.down(place)
        cgroups.remove()
        _remove_folders(place)


def _start(place: Place, makers: Iterable[Callable[[Place], processes.Part]]) -> list[str]:
    return [part.name for part in (make(place) for make in makers) if processes.start(place, part)]


def _wait_for_an_account(place: Place, api: Api, *, seconds: float = 60) -> None:
    """Waits for the service account without which no pod of the default namespace is accepted."""
    deadline = time.monotonic() + seconds
    while not api.has("/api/v1/namespaces/default/serviceaccounts/default"):
        if time.monotonic() > deadline:
            raise processes.PartFailed(f"controller-manager made no service account in {seconds:.0f} s; see {place.logs}")
        time.sleep(0.2)


def _require_root(verb: str) -> None:
    if os.geteuid() != 0:
        raise NotRoot(
            f"`{verb}` runs a kubelet and containers, which needs root: `sudo -E {verb}`, or set KUBECONFIG to a cluster that you have"
        )


@contextmanager
def _alone(place: Place) -> Iterator[None]:
    """Holds off another `make cluster` or `make cluster-down`."""
    place.cache.mkdir(parents=True, exist_ok=True)
    with (place.cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _record_system_folders(place: Place) -> None:
    record = place.state / "folders.json"
    if not record.exists():
        record.write_text(json.dumps([str(folder) for folder in SYSTEM_FOLDERS if not folder.exists()]))


def _remove_folders(place: Place) -> None:
    record = place.state / "folders.json"
    created = [Path(name) for name in json.loads(record.read_text())] if record.exists() else []
    for folder in (*(folder for folder in created if folder not in SHARED_FOLDERS), place.run, place.state):
        if mounts := _mounts(folder):
            raise StillMounted(f"{mounts[0]} cannot be unmounted; {folder} is left")
        shutil.rmtree(folder, ignore_errors=not folder.exists())
    # Other runtimes and builders of images may use these by now: only what is ours, and the folders if nothing else is in them.
    listening = Path("/proc/net/unix").read_text()
    sockets = [path for path in Path("/run/containerd/s").glob("*") if str(path) not in listening]
    sandboxes = [path.name.removeprefix("atelier-").removesuffix("-eth0") for path in Path("/var/lib/cni/results").glob("atelier-*")]
    results = [path for sandbox in sandboxes for path in Path("/var/lib/cni/results").glob(f"*-{sandbox}-*")]
    for path in (*sockets, *results):
        path.unlink()
    for folder in (Path("/run/containerd/s"), Path("/var/lib/cni/results"), *(folder for folder in created if folder in SHARED_FOLDERS)):
        with suppress(OSError):
            folder.rmdir()


def _unmount(place: Place) -> None:
    for folder in (place.run, place.state, Path("/var/lib/kubelet")):
        # The deepest first; a namespace is let go a moment after its last process.
        for _ in range(20):
            for mount in _mounts(folder):
                subprocess.run(["umount", mount], capture_output=True)
            if not _mounts(folder):
                break
            time.sleep(0.2)


def _mounts(folder: Path) -> list[str]:
    """Mount points below a folder, the last mounted first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in reversed(points) if point == str(folder) or point.startswith(f"{folder}/")]
