"""The nodes of pools as pods of Deployments, which are scaled, and watched for why they wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from atelier.kubernetes.watching import Watched, told
from atelier.server.nodes import PoolNode

POOL = "atelier.dev/pool"
"""Label of their pods."""
TIMEOUT_SECONDS = 10
NEWS = timedelta(minutes=5)
"""A warning that was not repeated for so long says nothing about now."""
STARTING = ("ContainerCreating", "PodInitializing")
MAX_REASON = 500


class PodNodes:
    """See `server.nodes.Nodes`. `pools`: the name of each -> the Deployment of its nodes, empty where somebody else scales them (KubeRay).

    Needs `patch` on those Deployments' `scale`, and pods and events of the namespace to list and watch.
    """

    def __init__(self, core: client.CoreV1Api, *, namespace: str, pools: Mapping[str, str]) -> None:
        self._apps = client.AppsV1Api(core.api_client)
        self._core = core
        self._namespace = namespace
        self._pools = dict(pools)
        self._pods: Watched | None = None
        self._events: Watched | None = None

    @contextmanager
    def running(self, changed: Callable[[], None]) -> Iterator[None]:
        """See Nodes."""
        selector = f"{POOL} in ({', '.join(sorted(self._pools))})"
        pods, events = self._core.list_namespaced_pod, self._core.list_namespaced_event
        self._pods = Watched(pods, namespace=self._namespace, label_selector=selector, changed=changed)
        self._events = Watched(events, namespace=self._namespace, field_selector="type=Warning", changed=changed)
        with self._pods.running(), self._events.running():
            yield

    def of(self, pool: str) -> Sequence[PoolNode] | None:
        """See Nodes. A pod that is being ended does not count any more."""
        pods = self._pods.objects if self._pods else None
        if pods is None or pool not in self._pools:
            return None
        own = [pod for pod in pods if pod.metadata.labels[POOL] == pool and self._is_node(pod, self._pools[pool])]
        return [self._node(pod) for pod in own if not pod.metadata.deletion_timestamp]

    def trouble(self, pool: str) -> str:
        """See Nodes: what a quota or an admission says to the ReplicaSet, or to KubeRay's operator."""
        said = next((event.message for event in self._news() if self._is_refused(event, pool)), "")
        return (said.partition("is forbidden: ")[2] or said)[:MAX_REASON]  # before it stands the name of a pod that there is not

    def scale(self, pool: str, count: int) -> None:
        """See Nodes."""
        deployment, patch = self._pools[pool], self._apps.patch_namespaced_deployment_scale
        options: dict[str, Any] = {"_content_type": "application/merge-patch+json", "_request_timeout": TIMEOUT_SECONDS}
        try:
            patch(deployment, self._namespace, {"spec": {"replicas": count}}, **options)
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            raise OSError(f"Deployment {deployment} cannot be scaled: {told(error)}") from None

    def _is_node(self, pod: Any, deployment: str) -> bool:
        """Whether it is of this release: workers carry the pool's label too, and so do nodes of other releases in the namespace."""
        owners = [(owner.kind, owner.name) for owner in pod.metadata.owner_references or ()]
        if not deployment:
            return any(kind == "RayCluster" for kind, _ in owners)
        return any(kind == "ReplicaSet" and _without_hash(name) == deployment for kind, name in owners)

    def _is_refused(self, event: Any, pool: str) -> bool:
        """Whether it says that a pod of this pool could not be made; the operator names the group in the name of the pod alone."""
        of, deployment = event.involved_object, self._pools.get(pool)
        if not deployment:
            return of.kind == "RayCluster" and event.reason == "FailedToCreateWorkerPod" and f"-{pool}-worker-" in event.message
        return of.kind == "ReplicaSet" and event.reason == "FailedCreate" and _without_hash(of.name) == deployment

    def _node(self, pod: Any) -> PoolNode:
        conditions = {one.type: one for one in pod.status.conditions or ()}
        ready = "Ready" in conditions and conditions["Ready"].status == "True"
        reason = "" if ready else self._reason(pod, conditions)
        return PoolNode(name=pod.metadata.name, address=pod.status.pod_ip or "", ready=ready, reason=reason[:MAX_REASON])

    def _reason(self, pod: Any, conditions: Mapping[str, Any]) -> str:
        scheduled = conditions.get("PodScheduled")
        if scheduled is not None and scheduled.status == "False":
            return scheduled.message or scheduled.reason or "waits for the scheduler"
        statuses = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
        waiting = [one.state.waiting for one in statuses if one.state and one.state.waiting and one.state.waiting.reason not in STARTING]
        if waiting:
            return ": ".join(filter(None, [waiting[0].reason, waiting[0].message]))
        if pod.status.phase != "Running":
            said = next((event for event in self._news() if event.involved_object.name == pod.metadata.name), None)
            return f"{said.reason}: {said.message}" if said else pod.status.message or "starts"
        return "no replica on it answers yet"

    def _news(self) -> list[Any]:
        """Warnings of the last minutes, the last first."""
        events = (self._events.objects if self._events else None) or ()
        recent = [event for event in events if _time(event) > datetime.now(UTC) - NEWS]
        return sorted(recent, key=_time, reverse=True)


def _without_hash(replica_set: str) -> str:
    """The Deployment of a ReplicaSet."""
    return replica_set.rpartition("-")[0]


def _time(event: Any) -> datetime:
    series = event.series.last_observed_time if event.series else None
    found: datetime = series or event.last_timestamp or event.event_time or event.metadata.creation_timestamp
    return found
