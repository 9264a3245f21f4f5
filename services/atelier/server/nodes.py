"""The nodes of pools: what stands of them, and how many there shall be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

BUILDING = "DEPLOYING"
"""Serve's word for an application that is built, or changed."""


@dataclass(frozen=True, kw_only=True)
class PoolNode:
    """A node: the pod of a raylet. `ready` while a replica on it answers; `reason` says why it is not."""

    name: str
    address: str = ""
    ready: bool = False
    reason: str = ""


class Nodes(Protocol):
    """What runs the nodes of pools. Methods may be called from any thread."""

    def running(self, changed: Callable[[], None]) -> AbstractContextManager[None]:
        """Keeps what `of` and `trouble` tell current until the block ends; `changed` is called from any thread."""

    def of(self, pool: str) -> Sequence[PoolNode] | None:
        """A pool's nodes, by name; None where they are not known (yet)."""

    def trouble(self, pool: str) -> str:
        """Why nodes that there shall be are not made at all; empty where they are."""

    def scale(self, pool: str, count: int) -> None:
        """Sets how many there shall be. Raises OSError."""


@dataclass(frozen=True, kw_only=True)
class ApplicationState:
    """A pool's application, as Serve tells. `built`: Serve knows its deployment, so that calls can wait for its replicas."""

    status: str
    message: str = ""
    built: bool = False
    target: int = 0
    replicas: int = 0
    """In any state."""

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> ApplicationState:
        """Of an entry of Serve's `applications`."""
        deployments = list(content.get("deployments", {}).values())
        return cls(
            status=content.get("status", ""),
            message=content.get("message", ""),
            built=bool(deployments),
            target=sum(each.get("target_num_replicas", 0) for each in deployments),
            replicas=sum(len(each.get("replicas", ())) for each in deployments),
        )

    @property
    def wants_node(self) -> bool:
        """Whether it is built, or may be, and has no replica: Serve does that on a node with its labels."""
        return not self.built or (self.status == BUILDING and not self.target and not self.replicas)


@dataclass(frozen=True, kw_only=True)
class ServeState:
    """What Serve tells: applications by name, and the addresses of nodes that have a replica, or a proxy that may have calls."""

    applications: Mapping[str, ApplicationState] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> ServeState:
        """Of the answer of `GET /api/serve/applications/`."""
        applications = content.get("applications", {})
        actors = list(content.get("proxies", {}).values())
        for application in applications.values():
            actors += [replica for each in application.get("deployments", {}).values() for replica in each.get("replicas", ())]
        return cls(
            applications={name: ApplicationState.read(one) for name, one in applications.items()},
            busy=frozenset(actor["node_ip"] for actor in actors if actor.get("node_ip")),
        )


def nodes_wanted(state: ApplicationState | None, nodes: Sequence[PoolNode], *, busy: Collection[str], least: int, most: int) -> int:
    """How many nodes a pool shall have, which has `nodes` now. `most` 0: its application is left out of Serve's config.

    Up at once. Down only as far as there are nodes that are not ready, which Kubernetes takes first, and only while none of those has
    anything to lose: a replica that starts or stops, or a proxy with calls.
    """
    if most == 0:
        wanted = 0
    elif state is None or state.wants_node:  # no target tells how many are needed: what is there stays
        wanted = max(1, least, len(nodes))
    else:
        wanted = state.target
    if wanted >= len(nodes):
        return wanted
    if any(node.address in busy for node in nodes if not node.ready):
        return len(nodes)
    return max(wanted, sum(node.ready for node in nodes))
