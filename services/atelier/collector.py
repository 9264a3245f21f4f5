"""Metrics that are read when somebody looks: jobs, pools and deployments from the ledger, certificates from their files."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from cryptography import x509
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from atelier.jobs import standing as jobs
from atelier.jobs.job import State
from atelier.ledger import Database, now
from atelier.server import standing as pools

T = TypeVar("T")

logger = logging.getLogger("atelier.metrics")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What is looked at. `services`: those whose jobs are this process's; `certificates`: files in PEM by what they are."""

    database: Database
    services: Sequence[str] = ()
    pools: Callable[[], pools.Standing] | None = None
    certificates: Mapping[str, Path] = field(default_factory=dict)
    fresh_seconds: float = 10.0
    """The ledger is asked no more often, whoever scrapes."""
    patience_seconds: float = 3.0
    """So long is it waited for: a scrape is given up after ten, and would tell nothing of all the rest."""


class StandingCollector(Collector):
    """Reads the sources when it is scraped. What cannot be read is left out, so that nothing old passes for new."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._jobs = _Looked(lambda: jobs.standing(sources.database, sources.services), sources)
        self._pools = _Looked(sources.pools, sources) if sources.pools else None

    def close(self) -> None:
        """Ends its threads."""
        for looked in (self._jobs, self._pools):
            if looked:
                looked.close()

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask the ledger."""
        return []

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        found = self._jobs.get()
        yield GaugeMetricFamily("atelier_ledger_up", "1 where the ledger answers.", value=float(found is not None))
        if found is not None:
            yield from self._of_jobs(found)
        if self._pools and (standing := self._pools.get()) is not None:
            yield _gauge("atelier_pool_replicas", "Replicas that report.", ["pool"], standing.replicas)
            yield _gauge("atelier_pool_target_replicas", "Replicas that Serve wants.", ["pool"], standing.targets)
            yield _gauge("atelier_deployments", "Deployments.", ["state"], standing.deployments)
        yield _gauge(
            "atelier_certificate_expiry_timestamp_seconds", "When a certificate ends, in Unix time.", ["file"],
            {name: end for name, path in self._sources.certificates.items() if (end := _end(path)) is not None},
        )  # fmt: skip

    def _of_jobs(self, found: Sequence[jobs.Standing]) -> Iterable[Metric]:
        counts = {(service, str(state)): 0 for service in self._sources.services for state in jobs.UNENDED}
        waiting = dict.fromkeys(self._sources.services, 0.0)
        for each in found:
            counts[each.service, str(each.state)] = each.count
            if each.state is State.PENDING:
                waiting[each.service] = max(0.0, (now() - each.oldest).total_seconds())
        yield _gauge("atelier_jobs", "Jobs that are not over.", ["component", "state"], counts)
        yield _gauge("atelier_job_oldest_pending_seconds", "How long the oldest job waits.", ["component"], waiting)


class _Looked(Generic[T]):
    """What `read` gives, read anew once it is old; None where it fails, or does not answer in time, and then nobody waits behind it."""

    def __init__(self, read: Callable[[], T], sources: Sources) -> None:
        self._read = read
        self._fresh_seconds = sources.fresh_seconds
        self._patience_seconds = sources.patience_seconds
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._reading: Future[T] | None = None
        self._found: T | None = None
        self._end = -float("inf")

    def get(self) -> T | None:
        with self._lock:
            if self._reading is None and time.monotonic() >= self._end:
                self._reading = self._thread.submit(self._read)
            if self._reading is not None:
                self._wait(self._reading)
            return self._found

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _wait(self, reading: Future[T]) -> None:
        try:
            self._found = reading.result(self._patience_seconds)
        except Exception as error:
            self._found = None
            if not reading.done():
                return  # it still reads: the next look takes that up
            logger.warning("cannot be read for metrics: %s", error)
        self._reading, self._end = None, time.monotonic() + self._fresh_seconds


def _gauge(name: str, text: str, labels: Sequence[str], values: Mapping[str, float] | Mapping[tuple[str, str], float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric([key] if isinstance(key, str) else list(key), value)
    return family


def _end(path: Path) -> float | None:
    """When the first certificate of a file to end does so; None where it cannot be read."""
    try:
        return min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(path.read_bytes())).timestamp()
    except (OSError, ValueError) as error:
        logger.warning("the certificate %s cannot be read: %s", path, error)
        return None
