"""The life of a worker process: claim, work, complete; and what happens when its parent, its job or its network goes away."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, descriptor_pool, message_factory

from atelier import telemetry
from atelier.artifacts.signing import Verifier
from atelier.errors import AtelierError, Status
from atelier.jobs.attempts_client import AttemptsClient
from atelier.jobs.context import Cancelled, JobContext, Preempted
from atelier.jobs.follower import FollowerContext, RecordedContext
from atelier.jobs.launcher import LIFELINE, PREEMPTED_EXIT_CODE
from atelier.jobs.remote_context import RemoteContext
from atelier.rpc.tls import Tls

logger = logging.getLogger("atelier.worker")

FAILED_EXIT_CODE = 1
Execute = Callable[[Any, JobContext], None]
"""Does the job: takes the spec as the message that was submitted, and the context."""


def main(execute: Execute) -> None:
    """Runs one attempt of the job that the environment names, then exits. For `__main__.py` of each service."""
    telemetry.log_of_worker(os.environ)
    if LIFELINE in os.environ:
        _watch_lifeline()
    preempted = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: preempted.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the parent's to handle
    # Processes that torchrun starts together share its run id, and so a folder.
    workdir = Path(os.environ["ATELIER_WORKER_DIR"]) / os.environ.get("TORCHELASTIC_RUN_ID", str(os.getpid()))
    if int(os.environ.get("RANK", "0")) != 0:
        follower = FollowerContext(job=os.environ["ATELIER_JOB"], workdir=workdir)
        with contextlib.suppress(Preempted, Cancelled):  # rank 0 tells; it may be writing a checkpoint still
            execute(_unpack(follower.spec()), follower)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        sys.exit(_attempt(execute, workdir, preempted))
    finally:
        shutil.rmtree(workdir.parent, ignore_errors=True)


def _attempt(execute: Execute, workdir: Path, preempted: threading.Event) -> int:
    tls = Tls.of_environment(os.environ)
    client = AttemptsClient(os.environ["ATELIER_ATTEMPTS"], job=os.environ["ATELIER_JOB"], token=os.environ["ATELIER_JOB_TOKEN"], tls=tls)
    verifier = Verifier.load(Path(os.environ["ATELIER_PUBLIC_KEY"]))
    claim = client.claim(f"{socket.gethostname()}/{os.getpid()}")
    with RemoteContext(client, claim, workdir=workdir, verifier=verifier, preempted=preempted) as context:
        error: AtelierError | None = None
        try:
            several = int(os.environ.get("WORLD_SIZE", "1")) > 1
            recorded: JobContext = RecordedContext(context, spec=claim.spec.SerializeToString()) if several else context
            execute(_unpack(claim.spec.SerializeToString()), recorded)
        except Preempted:
            context.flush()
            return PREEMPTED_EXIT_CODE
        except Cancelled:
            error = AtelierError(Status.CANCELLED, "CANCELLED", "the job was cancelled")
        except AtelierError as caught:
            if caught.reason == "ATTEMPT_SUPERSEDED":
                logger.info("another attempt has taken over")
                return 0
            error = caught
        except Exception:
            logger.exception("the job failed")
            error = AtelierError(Status.INTERNAL, "WORKER_FAILED", f"the worker failed; its log has the traceback ({context.job})")
        context.flush()
        # What was published last is the main output: it comes first, and gets the tags.
        client.complete(claim.attempt, outputs=dict(reversed(context.outputs.items())), error=error)
    # Who looks at processes or pods sees a failure too, and torchrun does not wait for the others.
    return FAILED_EXIT_CODE if error is not None and error.status is not Status.CANCELLED else 0


def _unpack(packed: bytes) -> Any:
    message = any_pb2.Any.FromString(packed)
    descriptor = descriptor_pool.Default().FindMessageTypeByName(message.TypeName())
    return message_factory.GetMessageClass(descriptor).FromString(message.value)


def _watch_lifeline() -> None:
    """Ends the whole process group when standard input closes: the process that started this one has ended, in whatever way."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
