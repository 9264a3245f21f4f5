"""What is measured, in words that need no library: services are given a `Meters` and know nothing of who reads it (see `metrics`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from atelier.errors import failed_precondition

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


def meters_for(listen: str | None, *, services: Sequence[str], pools: Sequence[str]) -> Meters:
    """The meters of a process that runs `services`: such as Prometheus reads at `listen`, where that is set.

    Raises FAILED_PRECONDITION where the extra `control` is not installed.
    """
    if not listen:
        return UNMEASURED
    try:
        from atelier.metrics import Metrics
    except ModuleNotFoundError as error:
        sentence = "ATELIER_METRICS_LISTEN needs prometheus-client: pip install 'atelier[control]'"
        raise failed_precondition("METRICS_NOT_INSTALLED", sentence) from error
    return Metrics(listen, services=services, pools=pools)
