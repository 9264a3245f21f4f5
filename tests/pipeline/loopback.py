"""A Ray elsewhere: a head without CPUs, and nodes of loopback addresses that come and go as a Deployment's pods do."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from processes import free_port

from atelier.server.nodes import PoolNode

FLAGS = ["--block", "--disable-usage-stats", "--object-store-memory=104857600", "--min-worker-port=0", "--max-worker-port=0"]
PROBE_SECONDS = 1.0


@dataclass(kw_only=True)
class RayProcess:
    """`ray start --block`, with all that comes of it; gone with this process."""

    arguments: Sequence[str]
    token: str
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        folder = tempfile.mkdtemp(prefix="atl-")
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH")}
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": f"{folder}/r"}
        own |= {"RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "5", "RAY_gcs_rpc_server_reconnect_timeout_s": "15", "HF_HUB_OFFLINE": "1"}
        ports = [f"--{name}={free_port()}" for name in ("dashboard-agent-listen-port", "runtime-env-agent-port", "metrics-export-port")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "atelier.server.ray_node", folder, *self.arguments, *FLAGS, *ports],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=kept | own | self.environment,
            )  # fmt: skip

    def end(self, *, killed: bool = False) -> None:
        """As a pod ends; or, killed, as a machine does."""
        assert self.process.stdin is not None
        if killed:
            for process in _below(self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait()


@dataclass(kw_only=True)
class Pod:
    """A node of a pool."""

    address: str
    ray: RayProcess
    http_port: int
    grpc_port: int
    ready: bool = False
    ended: bool = False


class Loopback:
    """See `server.nodes.Nodes`; `pool` has them. Plays Deployment, ReplicaSet, kubelet and the headless Service of Serve's proxies."""

    def __init__(self, folder: Path, *, pool: str) -> None:
        self.token, self.pool, self._folder = secrets.token_hex(32), pool, folder
        self.gcs, self.dashboard, self.http_port, self.grpc_port = (free_port() for _ in range(4))
        self.head = self._head()
        self.pods: list[Pod] = []
        self.scaled: list[int] = []
        self._made = 0
        self._lock = threading.RLock()
        self._changed: Callable[[], None] = lambda: None

    @contextmanager
    def started(self) -> Iterator[None]:
        """Head and probes, until the block ends."""
        stopped = threading.Event()
        thread = threading.Thread(target=self._probe, args=(stopped,))
        self.head.start()
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
            for pod in self.pods:
                pod.ray.end()
            self.head.end()

    def lose_head(self) -> None:
        """The head is killed, and comes back with nothing; as its Deployment does it."""
        self.head.end(killed=True)
        self.head = self._head()
        self.head.start()

    async def proxies(self) -> set[str]:
        """What the Service's name says."""
        with self._lock:
            return {f"127.0.0.1:{self.grpc_port}"} | {f"127.0.0.1:{pod.grpc_port}" for pod in self.pods if pod.ready and not pod.ended}

    @contextmanager
    def running(self, changed: Callable[[], None]) -> Iterator[None]:
        self._changed = changed
        yield

    def of(self, pool: str) -> list[PoolNode]:
        with self._lock:
            return [PoolNode(name=pod.address, address=pod.address, ready=pod.ready) for pod in self.pods if not pod.ended]

    def trouble(self, pool: str) -> str:
        return ""

    def scale(self, pool: str, count: int) -> None:
        assert pool == self.pool
        with self._lock:
            self.scaled.append(count)
            there = [pod for pod in self.pods if not pod.ended]
            for _ in range(count - len(there)):
                self.pods.append(self._new())
            # As a ReplicaSet: what is not ready first, then the newest.
            for pod in sorted(there, key=lambda one: (one.ready, -self.pods.index(one)))[: max(0, len(there) - count)]:
                pod.ended = True
                threading.Thread(target=pod.ray.end).start()

    def _head(self) -> RayProcess:
        arguments = [
            "--head", "--num-cpus=0", "--node-ip-address=127.0.0.1", f"--port={self.gcs}", "--include-dashboard=true",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={free_port()}",
        ]  # fmt: skip
        return RayProcess(arguments=arguments, token=self.token, log=self._folder / "head.txt")

    def _new(self) -> Pod:
        self._made += 1
        address, http_port, grpc_port = f"127.0.0.{self._made + 1}", free_port(), free_port()
        labels = f"--labels=atelier.dev/pool={self.pool},atelier.dev/gpu=cpu"
        arguments = [f"--address=127.0.0.1:{self.gcs}", f"--node-ip-address={address}", "--num-cpus=1", labels]
        environment = {"RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(http_port), "RAY_SERVE_WORKER_PROXY_GRPC_PORT": str(grpc_port)}
        ray = RayProcess(arguments=arguments, token=self.token, log=self._folder / f"node-{self._made}.txt", environment=environment)
        ray.start()
        return Pod(address=address, ray=ray, http_port=http_port, grpc_port=grpc_port)

    def _probe(self, stopped: threading.Event) -> None:
        while not stopped.wait(PROBE_SECONDS):
            for pod in [pod for pod in self.pods if not pod.ended]:
                if pod.ray.process.poll() is not None:  # its container is started again
                    pod.ray.start()
                ready = _answers(f"http://127.0.0.1:{pod.http_port}/-/healthz")
                if ready != pod.ready:
                    pod.ready = ready
                    self._changed()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _below(root: int) -> list[int]:
    from psutil import Process

    return [child.pid for child in Process(root).children(recursive=True)]


def until(condition: Callable[[], bool], *, seconds: float) -> float:
    """Waits for it; gives how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come"
        time.sleep(0.1)
    return time.monotonic() - began
