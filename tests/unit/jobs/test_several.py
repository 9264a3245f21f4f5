"""A worker of several processes stops, and ends, as one of a single process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atelier.jobs.launcher import PREEMPTED_EXIT_CODE, several

MODULE = """
import os, signal, sys, time
from pathlib import Path

stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
folder, rank = Path(os.environ["FOLDER"]), os.environ["RANK"]
(folder / f"began-{rank}").touch()
while not stop:
    if os.environ["ENDS"]:
        sys.exit(int(os.environ["ENDS"]) if rank == "0" else 0)
    time.sleep(0.05)
(folder / f"checkpoint-{rank}").touch()
sys.exit(143 if rank == "0" else 0)
"""


@contextmanager
def running(folder: Path, *, ends: str = "") -> Iterator[subprocess.Popen[bytes]]:
    (folder / "module.py").write_text(MODULE)
    environment = {**os.environ, "FOLDER": str(folder), "ENDS": ends, "PYTHONPATH": ":".join([str(folder), *sys.path])}
    with subprocess.Popen([sys.executable, *several("module", 2)], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_all_are_asked_to_stop_and_the_whole_made_room(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        end = time.monotonic() + 90
        while len(list(tmp_path.glob("began-*"))) < 2:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == PREEMPTED_EXIT_CODE
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


@pytest.mark.parametrize("code", ["0", "1"])
def test_success_and_failure_are_told(tmp_path: Path, code: str) -> None:
    with running(tmp_path, ends=code) as process:
        assert process.wait(90) == int(code)
