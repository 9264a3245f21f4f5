"""The parts as processes: started once, known by their command line, stopped with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.place import Place

# In the environment of every process that the cluster starts, and of those that these start (containerd's shims).
MARK = "ATELIER_CLUSTER"
ROOT = Path(__file__).parent.parent


class PartFailed(Exception):
    """A part ended, or did not answer in time."""


@dataclass(frozen=True)
class Part:
    """One process of the cluster."""

    name: str
    words: list[str]
    answers: Callable[[], bool]


def start(place: Place, part: Part, *, seconds: float = 120) -> bool:
    """Starts it unless it runs as asked, and waits until it answers; whether it had to be started."""
    running = _pids(place, part)
    for pid, words in running.items():
        if words != part.words:
            _stop([pid], grace_seconds=10)
    started = None if part.words in running.values() else _launch(place, part)
    _wait_until_it_answers(place, part, started, seconds)
    return started is not None


def stop(place: Place, parts: Iterable[str], *, grace_seconds: float = 10) -> None:
    """Ends these parts and what carries their mark, in order."""
    for name in parts:
        _stop(_marked(f"{place.state} {name}"), grace_seconds=grace_seconds)


def kill_all(place: Place) -> None:
    """Ends every process of the cluster that still runs, without asking."""
    while pids := _marked(f"{place.state} "):
        kill(pids)
        time.sleep(0.1)


def kill(pids: Iterable[int]) -> None:
    """Ends processes without asking them."""
    for pid in pids:
        _signal(pid, signal.SIGKILL)


def _launch(place: Place, part: Part) -> subprocess.Popen[bytes]:
    place.logs.mkdir(parents=True, exist_ok=True)
    environment = {
        "PATH": f"{place.bin}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
        "HOME": str(place.state),
        "PYTHONPATH": str(ROOT),
        MARK: f"{place.state} {part.name}",
    }
    with (place.logs / f"{part.name}.log").open("ab") as log:
        none = subprocess.DEVNULL
        return subprocess.Popen(part.words, env=environment, cwd="/", stdin=none, stdout=log, stderr=log, start_new_session=True)


def _wait_until_it_answers(place: Place, part: Part, started: subprocess.Popen[bytes] | None, seconds: float) -> None:
    log = place.logs / f"{part.name}.log"
    deadline = time.monotonic() + seconds
    while True:
        # Of a process that was started just now /proc may still show the copy of this one, without the mark.
        ended = started.poll() is not None if started else not _pids(place, part)
        if not ended and part.answers():
            return
        if ended or time.monotonic() > deadline:
            lines = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise PartFailed(f"{part.name} {'ended' if ended else 'does not answer'}; its log ({log}) ends so:\n{lines}")
        time.sleep(0.3)


def _pids(place: Place, part: Part) -> dict[int, list[str]]:
    """The processes of a part by its own program (not its children of other names)."""
    found = {}
    for pid in _marked(f"{place.state} {part.name}"):
        words = _read(pid, "cmdline").decode(errors="replace").split("\0")[:-1]
        if words and words[0] == part.words[0]:
            found[pid] = words
    return found


def _marked(value: str) -> list[int]:
    mark = f"{MARK}={value}".encode()
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if any(entry.startswith(mark) for entry in _read(pid, "environ").split(b"\0"))]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _stop(pids: list[int], *, grace_seconds: float) -> None:
    for pid in pids:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while any(_is_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            kill(pids)
        time.sleep(0.1)


def _is_alive(pid: int) -> bool:
    # A zombie has no command line: it is its parent's to reap.
    return bool(_read(pid, "cmdline"))


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
