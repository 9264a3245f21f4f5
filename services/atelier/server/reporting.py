"""A replica's talk with its installation: it reports what it holds, and makes ready what it is told to hold.

Two threads, so that a replica that loads a large model goes on reporting: one that is silent counts as gone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

import grpc

from atelier.v1 import replica_pb2, replica_pb2_grpc

logger = logging.getLogger("atelier.replica")

ANSWER_SECONDS = 20.0
"""Within which the server answers a report."""


class Reporting:
    """`report` gives the report for the etag that was seen last; `prepare` says whether everything is ready, or is worth another try."""

    def __init__(
        self,
        stub: replica_pb2_grpc.ReplicasStub,
        *,
        report: Callable[[str], replica_pb2.ReportRequest],
        prepare: Callable[[Sequence[replica_pb2.WantedModel]], bool],
        retry_seconds: float = 2.0,
    ) -> None:
        self._stub = stub
        self._report = report
        self._prepare = prepare
        self._retry_seconds = retry_seconds
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._asked = threading.Event()
        self._wanted: Sequence[replica_pb2.WantedModel] = ()

    def start(self) -> None:
        """Starts both threads."""
        for work, name in ((self._report_for_ever, "report"), (self._prepare_for_ever, "prepare")):
            threading.Thread(target=work, name=name, daemon=True).start()

    def stop(self) -> None:
        """Ends both after what they do now."""
        self._stopped.set()
        self._woken.set()
        self._asked.set()

    def change(self) -> None:
        """Something has changed: it is reported at once. From any thread."""
        self._woken.set()

    def _report_for_ever(self) -> None:
        """The server answers a report when it wants something new; what has changed here meanwhile is reported at once."""
        seen = ""
        while not self._stopped.is_set():
            woken = self._woken = threading.Event()
            try:
                call = self._stub.Report.future(self._report(seen), timeout=ANSWER_SECONDS)
                call.add_done_callback(partial(_wake, woken))
                woken.wait()
                if not call.done():
                    call.cancel()
                    continue
                answer = call.result()
            except grpc.RpcError as error:
                logger.warning("cannot report: %s", error.code())
                self._stopped.wait(self._retry_seconds)
                continue
            except Exception:
                logger.exception("cannot report")
                self._stopped.wait(self._retry_seconds)
                continue
            self._wanted, seen = answer.models, answer.etag
            self._asked.set()

    def _prepare_for_ever(self) -> None:
        while self._asked.wait() and not self._stopped.is_set():
            self._asked.clear()
            try:
                ready = self._prepare(self._wanted)
            except Exception:
                logger.exception("preparing models failed")
                ready = False
            if not ready:
                self._stopped.wait(self._retry_seconds)
                self._asked.set()


def _wake(event: threading.Event, _: object) -> None:
    event.set()
