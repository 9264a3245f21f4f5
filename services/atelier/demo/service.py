"""`atelier up` as a process of its own, that ends with the block that started it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atelier import app
from atelier.client import Address

START_SECONDS, STOP_SECONDS = 120.0, 60.0


@contextmanager
def atelier_up(data: Path, *, log: Path) -> Iterator[Address]:
    """Starts it on a port of its own, and stops it with all that it started. Raises RuntimeError when it does not come up."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "atelier.cli", "up", "--data", str(data), "--listen", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops this in order
        )
    try:
        yield _address(process, data, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], data: Path, log: Path) -> Address:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"atelier up ended at once: {log.read_text(errors='replace').strip()[-500:]}")
        address = app.running(data)
        if address is not None:
            return address
        time.sleep(0.1)
    raise RuntimeError(f"atelier up does not answer after {START_SECONDS:g} s; see {log}")
