"""What is measured, in words that need no library: services are given a `Meters` and know nothing of who reads it (see `metrics`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atelier.ledger import Database
    from atelier.rpc.tls import Tls


class Meters:
    """Measures nothing: for a process that has no port for metrics, and for tests. Its methods may be called from any thread."""

    def call_began(self, method: str) -> None:
        """A call came in; `method` as in `/atelier.v1.Jobs/GetJob`."""

    def call_ended(self, method: str, *, code: str, seconds: float) -> None:
        """It ended; `code` as in `NOT_FOUND`."""

    def attempt_began(self, service: str) -> None:
        """A worker has claimed a job of `service`."""

    def attempt_lost(self, service: str) -> None:
        """A worker died or hung, and that counts against its job."""

    def job_ended(self, service: str, *, state: str, seconds: float) -> None:
        """A job ended; `state` as in `SUCCEEDED`, `seconds` since its first attempt."""

    def first_step(self, pool: str, *, seconds: float) -> None:
        """A Generate call came to its first step so long after it came in."""

    def picture_made(self, pool: str, *, engine: str) -> None:
        """A picture was sent; `engine`: `eager`, `compiled` or `bound`."""

    def generated(self, pool: str, *, seconds: float) -> None:
        """A Generate call got all its pictures."""

    def replica_lost(self, pool: str) -> None:
        """A replica, or Serve's proxy before it, went away under a Generate call."""

    def served(self, database: Database, *, standing: Callable[[], Any] | None, tls: Tls | None) -> AbstractContextManager[Any]:
        """Answers who reads the meters, until the block ends, and for them looks at the ledger, at how pools and deployments stand (see
        `server.standing`), and at certificates."""
        return nullcontext()


UNMEASURED = Meters()
