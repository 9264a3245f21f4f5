"""What starts workers. `LocalLauncher`: a process of its own group each, that cannot outlive the process that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atelier.jobs.job import Job

JEMALLOC = (
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2",
    "/usr/lib64/libjemalloc.so.2",
    "/usr/local/lib/libjemalloc.so.2",
)
"""Where distributions put jemalloc: training on a CPU is about a quarter faster with it."""

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "HF_HOME")
"""What a worker gets of the environment of its parent, besides `AWS_...`: the store may be an S3, which the worker reads by itself."""


class Worker(Protocol):
    """A worker that was started."""

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""

    def stop(self) -> None:
        """Asks it to stop: it writes a checkpoint where it can."""

    def kill(self) -> None:
        """Ends it and all that it started, at once."""


class Launcher(Protocol):
    """Starts workers."""

    def start(self, job: Job) -> Worker:
        """Starts a worker for the job."""


@dataclass(frozen=True, kw_only=True)
class LocalLauncher:
    """Workers as processes of this machine.

    `environment` tells them where `Attempts` is; each gets the token of its own job by `token_of`. Their standard input is a pipe that
    nobody writes to: when it closes, because this process has ended in whatever way, the worker ends its whole process group.
    """

    environment: Mapping[str, str]
    token_of: Callable[[str], str]
    folder: Path
    threads: int = 0
    package: str = "atelier"

    def start(self, job: Job) -> LocalWorker:
        """Starts `python -m {package}.{service}` for the job; its output goes to `logs/{id}.log`."""
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("AWS_")}
        environment |= {
            **self.environment,
            "ATELIER_JOB": job.name,
            "ATELIER_JOB_TOKEN": self.token_of(job.name),
            "ATELIER_WORKER_DIR": str(self.folder / "work" / job.id),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        if self.threads:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        jemalloc = next((path for path in JEMALLOC if Path(path).exists()), None)
        if job.service == "trainer" and jemalloc:
            environment["LD_PRELOAD"] = jemalloc
        with (logs / f"{job.id}.log").open("ab") as log:
            process = subprocess.Popen(
                _command(f"{self.package}.{job.service}", job.processes),
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        return LocalWorker(process)


class LocalWorker:
    """A process and its group."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def exit_code(self) -> int | None:
        """See Worker."""
        return self._process.poll()

    def stop(self) -> None:
        """See Worker. The group's leader alone is asked; it passes the word on."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """See Worker."""
        if self._process.stdin is not None:
            self._process.stdin.close()  # reaches processes that have left the group, as torchrun's do
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _command(module: str, processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, "-m", module]
