"""A private Ray on this machine: ports, folder and token of its own. Imports no ray: it is started as a command and asked over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atelier.server.ray_node import RAY_FOLDER

logger = logging.getLogger("atelier.server")

OBJECT_STORE_BYTES = 100 << 20
START_SECONDS = 90.0
LOOK_SECONDS, RESTART_SECONDS = 1.0, 2.0


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A Ray that answers: its dashboard, and the ports that Serve shall open."""

    dashboard: str
    token: str
    grpc_port: int
    http_port: int
    host: str = "127.0.0.1"
    """Address that Serve's HTTP listens on, for probes."""

    def put_applications(self, config: dict[str, Any]) -> None:
        """Puts the whole set of Serve's applications in place. Raises OSError when the dashboard does not take it."""
        self._call("PUT", config)

    def applications(self) -> dict[str, Any]:
        """What Serve says of its applications. Raises OSError."""
        return self._call("GET", None)

    def _call(self, method: str, body: dict[str, Any] | None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.dashboard}/api/serve/applications/",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
        content: dict[str, Any] = json.loads(text) if text else {}
        return content


@asynccontextmanager
async def local_ray(*, logs: Path, labels: dict[str, str], num_cpus: int, grpc_port: int) -> AsyncIterator[RayCluster]:
    """Starts a Ray node and ends it with the block; when this process dies in any other way, the node ends as well.

    A node that ends before the block does is started again, at the same ports. Raises RuntimeError, naming the log, when it does not come
    up at first.
    """
    ports = _free_ports(7)
    cluster = RayCluster(dashboard=f"http://127.0.0.1:{ports[1]}", token=secrets.token_hex(32), grpc_port=grpc_port, http_port=ports[6])
    logs.mkdir(parents=True, exist_ok=True)
    node = _Node(cluster=cluster, arguments=_arguments(ports, labels, num_cpus), log=logs / "ray.log")
    await asyncio.to_thread(node.start)
    try:
        await _until_it_answers(node)
        keeper = asyncio.create_task(node.keep())
        try:
            yield cluster
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
    finally:
        await asyncio.to_thread(node.end)


@dataclass(kw_only=True)
class _Node:
    """The process that Ray's processes are below; see `ray_node`."""

    cluster: RayCluster
    arguments: list[str]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        # Sockets below it have paths of at most 107 bytes, so that it cannot lie in the data folder. Ray opens its own folder to all.
        folder = Path(tempfile.mkdtemp(prefix="atl-"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "atelier.server.ray_node", str(folder), *self.arguments],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, cwd="/",
                env=_environment(self.cluster.token, folder / RAY_FOLDER),
            )  # fmt: skip

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    async def keep(self) -> None:
        """Starts it again whenever it has ended."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.process.poll() is None:
                continue
            logger.error("Ray has ended (%s may say why); it is started again", self.log)
            await asyncio.to_thread(self.end)
            await asyncio.sleep(RESTART_SECONDS)
            try:
                self.start()
            except OSError:
                logger.exception("Ray cannot be started again; trying again")


def _arguments(ports: list[int], labels: dict[str, str], num_cpus: int) -> list[str]:
    return [
        "--head",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        f"--port={ports[0]}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports[1]}",
        f"--ray-client-server-port={ports[2]}",
        f"--dashboard-agent-listen-port={ports[3]}",
        f"--runtime-env-agent-port={ports[4]}",
        f"--metrics-export-port={ports[5]}",
        f"--num-cpus={num_cpus}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        # Drawn: another Ray on this machine takes its workers' ports from the same default range.
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--labels={','.join(f'{key}={value}' for key, value in labels.items())}",
    ]


def _environment(token: str, folder: Path) -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
    return {
        # AWS_...: the store may be an S3, which replicas read by themselves. OTEL_...: where their traces go.
        **{name: value for name, value in os.environ.items() if name in kept or name.startswith(("AWS_", "OTEL_"))},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        # A replica whose UNet call hangs would otherwise keep its cores for a minute more.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


async def _until_it_answers(node: _Node) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            await asyncio.to_thread(node.cluster.applications)
            return
        except OSError:
            if node.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Ray did not start; {node.log} says why") from None
        await asyncio.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
