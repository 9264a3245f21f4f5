"""What Prometheus reads of a control process at `/metrics`. The names are a contract: docs/operating.md has them in one table.

No label takes what clients write: a method that does not exist, or the name of a deployment or job, would make series without end. None is
called `service`, `job`, `pod` or `namespace` either: Prometheus gives those to whatever it scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from google.protobuf import descriptor_pool
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, start_http_server

from atelier import __version__
from atelier.collector import Sources, StandingCollector
from atelier.jobs.job import ENDED
from atelier.ledger import Database
from atelier.meters import Meters
from atelier.rpc.tls import Tls
from atelier.server.messages import ENGINE_WORDS
from atelier.server.standing import Standing

RPC_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
PICTURE_SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
JOB_SECONDS = (1, 10, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400)
OTHER = ("other", "other")
"""Service and method of calls that no service here has."""


class Metrics(Meters):
    """The meters of a process that runs `services` and knows `pools`, read at `listen` (`host:port`).

    Their series are there from the start: of one that begins at 1 Prometheus would not see the increase.
    """

    def __init__(self, listen: str, *, services: Sequence[str], pools: Sequence[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._listen = listen
        self._services = [service for service in services if service != "server"]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Gauge("atelier_build_info", "1, of this version.", ["version"], registry=registry)
        build.labels(__version__).set(1)
        rpc = ("grpc_service", "grpc_method")
        self._calls = Counter("atelier_rpc_requests_total", "Calls that ended, by status.", [*rpc, "grpc_code"], registry=registry)
        self._seconds = Histogram(
            "atelier_rpc_duration_seconds", "How long calls took, streams to their end.", rpc, registry=registry, buckets=RPC_SECONDS
        )
        self._in_flight = Gauge("atelier_rpc_in_flight", "Calls in work.", rpc, registry=registry)
        self._job_meters(self._services)
        self._picture_meters(pools if "server" in services else ())

    def _job_meters(self, services: Sequence[str]) -> None:
        kept = self.registry
        self._attempts = Counter("atelier_job_attempts_total", "Attempts that began.", ["component"], registry=kept)
        self._lost = Counter("atelier_job_attempts_lost_total", "Attempts whose worker died or hung.", ["component"], registry=kept)
        self._ended = Counter("atelier_jobs_ended_total", "Jobs that ended.", ["component", "state"], registry=kept)
        self._job_seconds = Histogram(
            "atelier_job_duration_seconds",
            "First attempt to end, of jobs that succeeded.",
            ["component"],
            registry=kept,
            buckets=JOB_SECONDS,
        )
        for service in services:
            self._attempts.labels(service)
            self._lost.labels(service)
            self._job_seconds.labels(service)
            for state in ENDED:
                self._ended.labels(service, state)

    def _picture_meters(self, pools: Sequence[str]) -> None:
        kept = self.registry
        self._first_step = Histogram(
            "atelier_generate_first_step_seconds",
            "Until the first step: what calls wait.",
            ["pool"],
            registry=kept,
            buckets=PICTURE_SECONDS,
        )
        self._generated = Histogram(
            "atelier_generate_duration_seconds", "Until the last picture, of calls that got all.", ["pool"], registry=kept,
            buckets=PICTURE_SECONDS,
        )  # fmt: skip
        self._pictures = Counter("atelier_pictures_total", "Pictures sent.", ["pool", "engine"], registry=kept)
        self._replicas_lost = Counter(
            "atelier_generate_replicas_lost_total", "Calls whose replica or proxy went away.", ["pool"], registry=kept
        )
        for pool in pools:
            for meter in (self._first_step, self._generated, self._replicas_lost):
                meter.labels(pool)
            for engine in ENGINE_WORDS:
                self._pictures.labels(pool, engine)

    def call_began(self, method: str) -> None:
        """See Meters."""
        self._in_flight.labels(*_labels(method)).inc()

    def call_ended(self, method: str, *, code: str, seconds: float) -> None:
        """See Meters."""
        labels = _labels(method)
        self._in_flight.labels(*labels).dec()
        self._calls.labels(*labels, code).inc()
        self._seconds.labels(*labels).observe(seconds)

    def attempt_began(self, service: str) -> None:
        """See Meters."""
        self._attempts.labels(service).inc()

    def attempt_lost(self, service: str) -> None:
        """See Meters."""
        self._lost.labels(service).inc()

    def job_ended(self, service: str, *, state: str, seconds: float) -> None:
        """See Meters."""
        self._ended.labels(service, state).inc()
        if state == "SUCCEEDED":
            self._job_seconds.labels(service).observe(seconds)

    def first_step(self, pool: str, *, seconds: float) -> None:
        """See Meters."""
        self._first_step.labels(pool).observe(seconds)

    def picture_made(self, pool: str, *, engine: str) -> None:
        """See Meters."""
        self._pictures.labels(pool, engine).inc()

    def generated(self, pool: str, *, seconds: float) -> None:
        """See Meters."""
        self._generated.labels(pool).observe(seconds)

    def replica_lost(self, pool: str) -> None:
        """See Meters."""
        self._replicas_lost.labels(pool).inc()

    @contextmanager
    def served(self, database: Database, *, standing: Callable[[], Standing] | None, tls: Tls | None) -> Iterator[int]:
        """See Meters; gives the port. Raises OSError when it is taken."""
        files = {"certificate": tls.certificate, "ca": tls.ca} if tls else {}
        certificates = {name: path for name, path in files.items() if path}
        collector = StandingCollector(Sources(database=database, services=self._services, pools=standing, certificates=certificates))
        self.registry.register(collector)
        host, _, port = self._listen.rpartition(":")
        try:
            server, thread = start_http_server(int(port), host.strip("[]"), self.registry)
        except OSError as error:
            sentence = f"cannot listen on {self._listen} (ATELIER_METRICS_LISTEN): it is in use, or not of this machine"
            raise OSError(sentence) from error
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
            collector.close()


@lru_cache(maxsize=1024)
def _labels(method: str) -> tuple[str, str]:
    """Service and method, where there is such a one: the gateway passes on whatever is asked of the trainer."""
    service, _, name = method.strip("/").partition("/")
    try:
        descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return OTHER
    return service, name
