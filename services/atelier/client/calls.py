"""How the client calls: with a deadline, errors as `AtelierError`, and repeated only where that is harmless.

`UNAVAILABLE` is repeated on idempotent calls: three times, or while patience lasts where an address that was right answers no more.
`RESOURCE_EXHAUSTED` only when the server says by RetryInfo when to come again; nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Any, TypeVar

import grpc

from atelier.errors import AtelierError, Status
from atelier.rpc.status import from_call

Response = TypeVar("Response")

UNREACHABLE = "SERVER_UNREACHABLE"
DEADLINE_SECONDS = 60.0
"""Deadline of a call that answers once."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """The rules for all calls to one server. `patience_seconds` bounds what is waited for an overloaded or restarting one."""

    target: str
    encrypted: bool = False
    patience_seconds: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    answered: Event = field(default_factory=Event)
    """Set once somebody has answered at the address: it is right then."""

    def unary(
        self, method: Callable[..., Response], request: Any, *, idempotent: bool, timeout_seconds: float | None = DEADLINE_SECONDS
    ) -> Response:
        """Calls a method that answers once. Raises AtelierError."""
        repetition = Repetition(calls=self, idempotent=idempotent, most=3)
        while True:
            try:
                response = method(request, timeout=timeout_seconds)
                self.answered.set()
                return response
            except grpc.RpcError as error:
                repetition.wait_or_raise(self.error(error))

    def error(self, error: grpc.RpcError) -> AtelierError:
        """The error behind a failed call; what gRPC itself says is put into words that help."""
        found = from_call(error)
        if found.reason != "UNKNOWN":
            self.answered.set()
            return found
        if found.status is Status.UNAVAILABLE:
            asked = "and is its authority trusted here (--ca-file; http:// is without TLS)" if self.encrypted else "and is this its address"
            sentence = f"cannot reach {self.target}; is `atelier up` running there, {asked}?"
            return AtelierError(found.status, UNREACHABLE, sentence, metadata={"target": self.target})
        if found.status is Status.DEADLINE_EXCEEDED:
            return AtelierError(found.status, "NO_ANSWER_IN_TIME", f"{self.target} did not answer in time; try again")
        if found.status is Status.UNIMPLEMENTED:
            return AtelierError(found.status, "NOT_SERVED", f"{self.target} does not serve this; is it an Atelier of this version?")
        # A server that shuts down cancels what it cannot answer any more; nobody on this side did.
        return cut_off() if found.status is Status.CANCELLED else found


def cut_off() -> AtelierError:
    """A call that the server has ended before it was answered."""
    return AtelierError(Status.UNAVAILABLE, "CUT_OFF", "the server ended the call before it was answered: try again")


@dataclass(kw_only=True)
class Repetition:
    """Decides, for one call, whether a failure is waited out. `most` bounds how often after UNAVAILABLE; None: patience alone does, as for
    an address at which nobody answers any more.

    Nothing is waited for beyond `end`, a time of the clock.
    """

    calls: Calls
    idempotent: bool
    most: int | None
    end: float | None = None
    failures: int = 0
    since: float | None = None

    def went_on(self) -> None:
        """The call gave something: patience begins anew."""
        self.failures, self.since = 0, None

    def wait_or_raise(self, error: AtelierError) -> None:
        """Waits before the next try, or raises the error."""
        delay = self._delay(error)
        now = self.calls.clock()
        self.since = now if self.since is None else self.since
        if delay is None or now + delay - self.since > self.calls.patience_seconds or (self.end is not None and now + delay >= self.end):
            raise error
        self.failures += 1
        self.calls.sleep(delay)

    def _delay(self, error: AtelierError) -> float | None:
        if error.status is Status.RESOURCE_EXHAUSTED:
            return error.retry_after_seconds
        restarting = error.reason == UNREACHABLE and self.calls.answered.is_set()
        if error.status is Status.UNAVAILABLE and self.idempotent and (self.most is None or restarting or self.failures < self.most):
            return error.retry_after_seconds or min(0.25 * 2**self.failures, 5.0)
        return None
