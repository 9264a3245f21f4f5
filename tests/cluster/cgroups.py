"""The control group below which the kubelet puts every pod: made before it starts, and a way to find and end all that runs in pods."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from cluster import processes
from cluster.place import CGROUP

MOUNT = Path("/sys/fs/cgroup")


def create() -> None:
    """Makes the group in every hierarchy (version 1 has one a controller, version 2 one in all)."""
    for hierarchy in _hierarchies():
        folder = hierarchy / CGROUP
        folder.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # A group of version 1 takes no process before it has these.
            if (folder / setting).exists() and not (folder / setting).read_text().strip():
                (folder / setting).write_text((hierarchy / setting).read_text())
        if (hierarchy / "cgroup.subtree_control").exists():
            controllers = (hierarchy / "cgroup.controllers").read_text().split()
            for target in (hierarchy, folder):
                (target / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def kill_all(seconds: float = 30) -> None:
    """Ends every process in the group."""
    deadline = time.monotonic() + seconds
    while pids := _pids():
        if time.monotonic() > deadline:
            raise processes.PartFailed(f"processes of pods do not end: {sorted(pids)}")
        processes.kill(pids)
        time.sleep(0.1)


def remove() -> None:
    """Removes the group, which has to be empty."""
    for folder in _folders():
        for _ in range(50):
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def _hierarchies() -> Iterator[Path]:
    if (MOUNT / "cgroup.controllers").exists():
        yield MOUNT
        return
    for folder in MOUNT.iterdir():
        if not folder.is_symlink() and (folder / "cgroup.procs").exists():
            yield folder


def _folders() -> list[Path]:
    """All folders of the group, the deepest first."""
    found: list[Path] = []
    for hierarchy in _hierarchies():
        found += [Path(name) for name, _, _ in os.walk(hierarchy / CGROUP, topdown=False)]
    return found


def _pids() -> set[int]:
    pids: set[int] = set()
    for folder in _folders():
        try:
            pids.update(map(int, (folder / "cgroup.procs").read_text().split()))
        except OSError:
            continue
    return pids
