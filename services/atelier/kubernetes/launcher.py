"""Workers as Kubernetes Jobs: made from the chart's manifests, watched, and never polled."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from atelier.jobs.job import Job, State
from atelier.jobs.launcher import NotNow, Sight
from atelier.kubernetes.manifest import CONTAINER, INSTANCE, JOB, SERVICE, filled, job_name, pool_of, read_manifests
from atelier.kubernetes.watching import told
from atelier.kubernetes.worker_jobs import WorkerJobs
from atelier.kubernetes.worker_pods import end_of, left_of, lines_of, sight_of
from atelier.pools import Pool

logger = logging.getLogger("atelier.jobs")

TIMEOUT_SECONDS = 10
TAIL_LINES = 20


class KubernetesLauncher:
    """See Launcher. Needs jobs to create, list, watch and delete; pods and events to list and watch; pods/log to get; and to get the
    ConfigMap that the manifests name as the owner of Jobs, with which they go."""

    outlives = True

    def __init__(
        self, core: client.CoreV1Api, *, namespace: str, manifests: Path, services: Sequence[str], pools: Sequence[Pool],
        token_of: Callable[[str], str],
    ) -> None:  # fmt: skip
        self._core = core
        self._batch = client.BatchV1Api(core.api_client)
        self._namespace = namespace
        self._manifests = read_manifests(manifests, services)
        self._pools = {pool.name: pool for pool in pools}
        self._token_of = token_of
        self._seen: WorkerJobs | None = None

    @contextmanager
    def watching(self, services: Sequence[str]) -> Iterator[None]:
        """See Launcher."""
        instances = {manifest["metadata"]["labels"][INSTANCE] for manifest in self._manifests.values()}
        selector = f"{INSTANCE} in ({', '.join(sorted(instances))}), {SERVICE} in ({', '.join(services)}), {JOB}"
        self._seen = WorkerJobs(self._core, namespace=self._namespace, selector=selector)
        with self._seen.running():
            yield

    def adopt(self, jobs: Sequence[Job]) -> Mapping[str, KubernetesWorker]:
        """See Launcher. From here on workers are seen as they are now.

        A Job that has ended is its job's worker until that was seen. What is being removed, such as from a node that does not answer, is
        nobody's once its job waits for another.
        """
        there: dict[str, list[Any]] = {}
        for each in sorted(self._watched().refresh().jobs.values(), key=_attempt):
            there.setdefault(each.metadata.labels[JOB], []).append(each)
        known = {job.id: job for job in jobs}
        found = {}
        for identifier, own in there.items():
            name = _worker_of(known[identifier], own) if identifier in known else _left_over(own)
            if name:
                found[identifier] = self._worker(name)
        return found

    def start(self, job: Job) -> KubernetesWorker:
        """See Launcher."""
        self._watched()
        manifest = self._manifests[job.service]
        body: Any = filled(
            manifest, job, token=self._token_of(job.name), pool=pool_of(job, self._pools), owner_uid=self._owner_uid(manifest)
        )  # fmt: skip
        try:
            made: Any = self._batch.create_namespaced_job(self._namespace, body, _request_timeout=TIMEOUT_SECONDS)
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            if isinstance(error, ApiException) and error.status == 409:  # made before, and seen soon; or still being removed
                raise NotNow(f"the worker's Job {job_name(manifest, job)} is there already") from None
            raise NotNow(f"the worker's Job cannot be made: {_message(error)}") from None
        return self._worker(made.metadata.name, made_at=int(made.metadata.resource_version))

    def _watched(self) -> WorkerJobs:
        assert self._seen is not None, "it has to be watching"
        return self._seen

    def _owner_uid(self, manifest: Mapping[str, Any]) -> str:
        owners = manifest["metadata"].get("ownerReferences", ())
        if not owners:
            return ""
        try:
            found: Any = self._core.read_namespaced_config_map(owners[0]["name"], self._namespace, _request_timeout=TIMEOUT_SECONDS)
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            raise NotNow(f"ConfigMap {owners[0]['name']} cannot be read: {_message(error)}") from None
        return str(found.metadata.uid)

    def _worker(self, name: str, *, made_at: int = 0) -> KubernetesWorker:
        return KubernetesWorker(
            name=name, made_at=made_at, namespace=self._namespace, core=self._core, batch=self._batch, seen=self._watched()
        )


@dataclass(frozen=True, kw_only=True)
class KubernetesWorker:
    """See Worker. A Kubernetes Job, whose pod Kubernetes makes anew by itself where it took it away."""

    name: str
    made_at: int
    """The resource version at which it was made; 0 where it was there already."""
    namespace: str
    core: client.CoreV1Api
    batch: client.BatchV1Api
    seen: WorkerJobs

    def look(self) -> Sight:
        """See Worker."""
        moment = self.seen.moment
        job, pods = moment.jobs.get(self.name), moment.pods.get(self.name, ())
        if job is not None:
            return sight_of(job, pods, moment.said_of(self.name))
        return left_of(pods) if moment.version >= self.made_at else Sight(runs=False)

    def log_tail(self) -> Sequence[str]:
        """See Worker."""
        pods = sorted(self.seen.moment.pods.get(self.name, ()), key=lambda pod: pod.metadata.creation_timestamp)
        if not pods:
            return ()
        read: Any = self.core.read_namespaced_pod_log
        try:
            log = read(
                pods[-1].metadata.name, self.namespace, container=CONTAINER, tail_lines=TAIL_LINES, _request_timeout=TIMEOUT_SECONDS
            )  # fmt: skip
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            logger.warning("the log of %s cannot be read: %s", pods[-1].metadata.name, told(error))
            return ()
        return lines_of(str(log))

    def stop(self) -> None:
        """See Worker."""
        self.kill()

    def kill(self) -> None:
        """See Worker. Its pod is asked to stop, and ended after its grace; the Job is gone once that is."""
        try:
            self.batch.delete_namespaced_job(
                self.name, self.namespace, propagation_policy="Foreground", _request_timeout=TIMEOUT_SECONDS
            )  # fmt: skip
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            if not (isinstance(error, ApiException) and error.status == 404):
                raise NotNow(f"the worker's Job {self.name} cannot be deleted: {_message(error)}") from None


def _worker_of(job: Job, own: Sequence[Any]) -> str:
    """Of a job's Kubernetes Jobs, in their order, the one that is its worker: for the attempt that it waits for, or the last."""
    last = own[-1]
    return str(last.metadata.name) if job.state is not State.PENDING or _attempt(last) == job.attempt else ""


def _left_over(own: Sequence[Any]) -> str:
    """One that goes on though its job is over; nobody has begun to remove it."""
    going = [one for one in own if end_of(one, ()) is None and not one.metadata.deletion_timestamp]
    return str(going[-1].metadata.name) if going else ""


def _attempt(made: Any) -> int:
    """How many attempts its job had when it was made; see `job_name`."""
    return int(made.metadata.name.rpartition("-")[2])


def _message(error: Exception) -> str:
    """What the API server says, such as which field its admission refuses."""
    if isinstance(error, ApiException):
        try:
            return str(json.loads(error.body or "{}").get("message") or told(error))
        except ValueError:
            return told(error)
    return told(error)
