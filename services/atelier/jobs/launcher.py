"""What starts workers. `LocalLauncher`: a process of its own group each, that cannot outlive the process that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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


LIFELINE = "ATELIER_LIFELINE"
"""In the environment of a worker that ends when its standard input closes; a pod's is closed from the start."""
NICENESS = 15
"""Workers of this machine step aside for calls: `Get` beside a training job that takes all cores has a 99th percentile of 10 ms, not 80."""
PREEMPTED_EXIT_CODE = 143
"""A worker that was asked to stop and has written its checkpoint."""


class NotNow(Exception):
    """What runs the workers cannot do it now, as the sentence says; to be tried again later."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a worker ended: why, for people, and whether that counts as a failure of its job."""

    reason: str
    counts: bool = True


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What is seen of a worker at one moment."""

    runs: bool = True
    """False before it was begun, and between two of its pods: then it has nothing to be heard of."""
    waits_for: str = ""
    """What has to come first, in a sentence, where that is known."""
    said: tuple[str, ...] = ()
    """Sentences about it so far that people should see."""
    end: End | None = None


class Worker(Protocol):
    """A worker that was started."""

    def look(self) -> Sight:
        """How it stands; asks nobody, so it can be called often."""

    def log_tail(self) -> Sequence[str]:
        """The last lines of its log, where people cannot read them otherwise."""

    def stop(self) -> None:
        """Asks it to stop: it writes a checkpoint where it can."""

    def kill(self) -> None:
        """Ends it and all that it started, and leaves nothing of it. May raise NotNow."""


class Launcher(Protocol):
    """Starts workers."""

    @property
    def outlives(self) -> bool:
        """Whether workers go on when this process ends: then it leaves them alone, and the next one adopts them."""

    def watching(self, services: Sequence[str]) -> AbstractContextManager[None]:
        """Open while it is asked for workers of these services."""

    def adopt(self, jobs: Sequence[Job]) -> Mapping[str, Worker]:
        """Workers that are there already, by job id: those of `jobs`, which are all that are not over, and those that go on though their
        job is over. Cheap enough to be asked often. May raise NotNow."""

    def start(self, job: Job) -> Worker:
        """Starts a worker for the job; a worker that was started for the same attempt is that one. May raise NotNow."""


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
    outlives = False

    def watching(self, services: Sequence[str]) -> AbstractContextManager[None]:
        """See Launcher."""
        return nullcontext()

    def adopt(self, jobs: Sequence[Job]) -> Mapping[str, LocalWorker]:
        """None: whatever ran under an earlier process has ended with it."""
        return {}

    def start(self, job: Job) -> LocalWorker:
        """Starts `python -m {package}.{service}` for the job; its output goes to `logs/{id}.log`."""
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("AWS_")}
        environment |= {
            **self.environment,
            LIFELINE: "1",
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
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)  # its threads and children have it from there
        return LocalWorker(process)


class LocalWorker:
    """A process and its group."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def look(self) -> Sight:
        """See Worker. With the process goes whatever it has left of its group."""
        code = self._process.poll()
        if code is None:
            return Sight()
        self.kill()
        return Sight(end=describe(code))

    def log_tail(self) -> Sequence[str]:
        """Nothing: its log is a file of this machine."""
        return ()

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


def describe(code: int) -> End:
    """How a worker ended whose process had this exit code (negative: the signal), if it has not said so itself."""
    if code == PREEMPTED_EXIT_CODE:
        return End(reason="the worker made room", counts=False)
    return End(reason=f"the worker was ended by signal {-code}" if code < 0 else f"the worker ended with exit code {code} and no word")


def several(module: str, processes: int) -> list[str]:
    """Arguments of Python that run a module as processes that train together."""
    return ["-m", "atelier.jobs.several", str(processes), module]


def _command(module: str, processes: int) -> list[str]:
    return [sys.executable, *(several(module, processes) if processes > 1 else ["-m", module])]
