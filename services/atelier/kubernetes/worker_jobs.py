"""The Kubernetes Jobs of workers, their pods and what is said of them: watched, and looked at as they are at one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from kubernetes import client

from atelier.jobs.launcher import NotNow
from atelier.kubernetes.watching import Watched
from atelier.kubernetes.worker_pods import OF_JOB


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Everything at one moment, by name. What was made at a resource version after `version` may not be in it yet."""

    version: int = 0
    jobs: Mapping[str, Any] = field(default_factory=dict)
    pods: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """By the Job's name."""
    events: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """By the name of what they are about."""

    def said_of(self, job: str) -> list[Any]:
        """Events about a Job and its pods."""
        names = [job, *(pod.metadata.name for pod in self.pods.get(job, ()))]
        return [event for name in names for event in self.events.get(name, ())]


class WorkerJobs:
    """Those of one namespace that a selector of labels finds. One watch on each kind, whatever their number."""

    def __init__(self, core: client.CoreV1Api, *, namespace: str, selector: str) -> None:
        batch = client.BatchV1Api(core.api_client)
        self._jobs = Watched(batch.list_namespaced_job, namespace=namespace, label_selector=selector)
        self._pods = Watched(core.list_namespaced_pod, namespace=namespace, label_selector=selector)
        self._events = Watched(core.list_namespaced_event, namespace=namespace, field_selector="type=Warning")
        self.moment = Moment()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps them current until the block ends."""
        with ExitStack() as stack:
            for each in (self._jobs, self._pods, self._events):
                stack.enter_context(each.running())
            yield

    def refresh(self) -> Moment:
        """What there is now; `moment` from here on. Raises NotNow before the API server has told."""
        version = self._jobs.version  # before the objects, which may then be newer than it says
        jobs, pods = self._jobs.objects, self._pods.objects
        if jobs is None or pods is None:
            raise NotNow("the API server has not told yet which workers there are")
        self.moment = Moment(
            version=version,
            jobs={job.metadata.name: job for job in jobs},
            pods=_grouped(pods, lambda pod: (pod.metadata.labels or {}).get(OF_JOB, "")),
            events=_grouped(self._events.objects or (), lambda event: event.involved_object.name or ""),
        )
        return self.moment


def _grouped(objects: Sequence[Any], key: Callable[[Any], str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for one in objects:
        found.setdefault(key(one), []).append(one)
    return found
