"""Workers as Kubernetes Jobs: made from the chart's manifests, watched, and never polled."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from atelier.jobs.job import Job, State
from atelier.jobs.launcher import End, NotNow, Sight
from atelier.kubernetes.manifest import CONTAINER, INSTANCE, JOB, SERVICE, filled, job_name, pool_of, read_manifests
from atelier.kubernetes.watching import Watched, told
from atelier.kubernetes.worker_pods import OF_JOB, end_of, lines_of, sight_of
from atelier.pools import Pool

logger = logging.getLogger("atelier.jobs")

TIMEOUT_SECONDS = 10
SEEN_SECONDS = 30.0
"""After which a Job that was made and has not been seen is gone."""
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
        self._jobs: Watched | None = None
        self._pods: Watched | None = None
        self._events: Watched | None = None

    @contextmanager
    def watching(self, services: Sequence[str]) -> Iterator[None]:
        """See Launcher."""
        instances = {manifest["metadata"]["labels"][INSTANCE] for manifest in self._manifests.values()}
        selector = f"{INSTANCE} in ({', '.join(sorted(instances))}), {SERVICE} in ({', '.join(services)}), {JOB}"
        self._jobs = Watched(self._batch.list_namespaced_job, namespace=self._namespace, label_selector=selector)
        self._pods = Watched(self._core.list_namespaced_pod, namespace=self._namespace, label_selector=selector)
        self._events = Watched(self._core.list_namespaced_event, namespace=self._namespace, field_selector="type=Warning")
        with self._jobs.running(), self._pods.running(), self._events.running():
            yield

    def adopt(self, jobs: Sequence[Job]) -> Mapping[str, KubernetesWorker]:
        """See Launcher. A Job that has ended is its job's worker until that was seen: a job that waits has its next attempt before it."""
        there: dict[str, list[Any]] = {}
        for each in sorted(self._seen(), key=lambda one: int(one.metadata.name.rpartition("-")[2])):
            there.setdefault(each.metadata.labels[JOB], []).append(each)
        known = {job.id: job for job in jobs}
        found = {}
        for identifier, own in there.items():
            last = next((one for one in reversed(own) if end_of(one, ()) is None), own[-1])
            if self._is_worker_of(last, known.get(identifier)):
                found[identifier] = self._worker(last.metadata.name)
        return found

    def start(self, job: Job) -> KubernetesWorker:
        """See Launcher."""
        self._seen()  # before the first list one might be started twice
        manifest = self._manifests[job.service]
        body: Any = filled(
            manifest, job, token=self._token_of(job.name), pool=pool_of(job, self._pools), owner_uid=self._owner_uid(manifest)
        )  # fmt: skip
        try:
            self._batch.create_namespaced_job(self._namespace, body, _request_timeout=TIMEOUT_SECONDS)
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            if not (isinstance(error, ApiException) and error.status == 409):
                raise NotNow(f"the worker's Job cannot be made: {_message(error)}") from None
            if self._is_leaving(job_name(manifest, job)):
                raise NotNow("the worker's Job of before is still being removed") from None
        return self._worker(job_name(manifest, job))

    def _seen(self) -> Sequence[Any]:
        seen = self._jobs.objects if self._jobs else None
        if seen is None or self._pods is None or self._pods.objects is None:
            raise NotNow("the API server has not told yet which workers there are")
        return seen

    def _is_worker_of(self, job: Any, known: Job | None) -> bool:
        if end_of(job, ()) is None:
            return True
        if known is None:
            return False
        return known.state is not State.PENDING or job.metadata.name.endswith(f"-{known.attempt}")

    def _is_leaving(self, name: str) -> bool:
        seen = next((one for one in self._seen() if one.metadata.name == name), None)
        return seen is not None and (bool(seen.metadata.deletion_timestamp) or end_of(seen, ()) is not None)

    def _owner_uid(self, manifest: Mapping[str, Any]) -> str:
        owners = manifest["metadata"].get("ownerReferences", ())
        if not owners:
            return ""
        try:
            found: Any = self._core.read_namespaced_config_map(owners[0]["name"], self._namespace, _request_timeout=TIMEOUT_SECONDS)
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            raise NotNow(f"ConfigMap {owners[0]['name']} cannot be read: {_message(error)}") from None
        return str(found.metadata.uid)

    def _worker(self, name: str) -> KubernetesWorker:
        assert self._jobs is not None and self._pods is not None and self._events is not None
        return KubernetesWorker(
            name=name, namespace=self._namespace, core=self._core, batch=self._batch, jobs=self._jobs, pods=self._pods, events=self._events
        )


@dataclass(kw_only=True)
class KubernetesWorker:
    """See Worker. A Kubernetes Job, whose pod Kubernetes makes anew by itself where it took it away."""

    name: str
    namespace: str
    core: client.CoreV1Api
    batch: client.BatchV1Api
    jobs: Watched
    pods: Watched
    events: Watched
    _made: float = field(default_factory=time.monotonic)
    _was_seen: bool = False

    def look(self) -> Sight:
        """See Worker."""
        job = next((one for one in self.jobs.objects or () if one.metadata.name == self.name), None)
        if job is not None:
            self._was_seen = True
            return sight_of(job, self._own_pods(), self.events.objects or ())
        if not self._was_seen and time.monotonic() - self._made < SEEN_SECONDS:
            return Sight(runs=False)
        return Sight(runs=False, end=End(reason="the worker's Kubernetes Job was deleted"))

    def log_tail(self) -> Sequence[str]:
        """See Worker."""
        pods = sorted(self._own_pods(), key=lambda pod: pod.metadata.creation_timestamp)
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

    def _own_pods(self) -> list[Any]:
        return [pod for pod in self.pods.objects or () if (pod.metadata.labels or {}).get(OF_JOB) == self.name]


def _message(error: Exception) -> str:
    """What the API server says, such as which field its admission refuses."""
    if isinstance(error, ApiException):
        try:
            return str(json.loads(error.body or "{}").get("message") or told(error))
        except ValueError:
            return told(error)
    return told(error)
