"""Atelier's own processes, started as a user starts them, and ended with the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atelier.client.client import Client


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def command(arguments: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`atelier ARGUMENTS...` until the block ends; then SIGINT, and SIGKILL for one that does not stop."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "atelier.cli", *arguments], stdout=stream, stderr=stream, env={**os.environ, **(environment or {})}
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_healthy(port: int, *, log: Path, seconds: float = 90) -> None:
    """Waits until the port answers as healthy."""
    end = time.monotonic() + seconds
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        while True:
            try:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
                return
            except grpc.RpcError:
                assert time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.2)


def connect(port: int, data: Path) -> Client:
    return Client(f"127.0.0.1:{port}", (data / "keys" / "token").read_text().strip())


def of_folder(data: Path) -> list[str]:
    """Processes (not zombies) whose command line or environment names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if state != "Z" and str(data).encode() in text and process.name != str(os.getpid()):
            found.append(f"{process.name} {(process / 'comm').read_text().strip()}")
    return found
