"""Keeps a private Ray node alive exactly as long as its owner: `python -m atelier.server.ray_node FOLDER RAY_START_ARGUMENTS...`.

Standard input is a pipe from the owner. When it closes, every process that came of this one is ended, whatever its group or session, and
FOLDER, below which Ray has its sockets and logs, is removed; other Ray nodes of the machine are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
RAY_FOLDER = "r"
"""Ray's own folder, which it opens to everybody, below one that only the owner may enter."""


def main() -> None:
    """The command."""
    # Orphans of Ray's processes become children of this one, so that they are found below.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(ended,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    folder = Path(sys.argv[1])
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--temp-dir={folder / RAY_FOLDER}", *sys.argv[2:]]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while not ended.wait(0.2) and process.poll() is None:
        _reap()
    end_descendants()
    shutil.rmtree(folder, ignore_errors=True)


def end_descendants() -> None:
    """Ends all processes below this one, and waits until they are gone."""
    end = time.monotonic() + 10
    while (found := _descendants(os.getpid())) and time.monotonic() < end:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        _reap()
        time.sleep(0.02)


def _reap() -> None:
    """Takes leave of children that have ended: orphans have no other parent."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(place.name))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _watch(ended: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    ended.set()


if __name__ == "__main__":
    main()
