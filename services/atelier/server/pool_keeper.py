"""Keeps what Serve runs and the pools' nodes as they shall be, and says how pools stand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from atelier.jobs.job import Job
from atelier.ledger import now
from atelier.pools import Pool
from atelier.server.applications import Application, serve_config
from atelier.server.nodes import ApplicationState, Nodes, PoolNode, ServeState, nodes_wanted
from atelier.server.pool_states import PoolState, PoolStates
from atelier.server.ray_cluster import RayCluster
from atelier.server.yielding import SERVICES, given

logger = logging.getLogger("atelier.server")

AGAIN_SECONDS = 60.0
"""Between attempts to build an application anew whose replica did not start, and to set a number of nodes that has not come about."""
FAILED = "DEPLOY_FAILED"
WORDS = {
    "NOT_STARTED": "its replica is being started",
    "DEPLOYING": "its replica is being started",
    "RUNNING": "",
    "UNHEALTHY": "its replica was lost and is started again",
    FAILED: "its replica does not start and is tried again; the server's log has the reason",
}
"""What Serve says of an application -> what is said to clients. Serve's own sentences hold tracebacks."""


class Jobs(Protocol):
    """What it asks of the ledger of jobs."""

    def unended(self, services: Sequence[str]) -> list[Job]:
        """Jobs of these services that are not over, oldest first."""


@dataclass(frozen=True, kw_only=True)
class _Scaled:
    count: int
    time: float


@dataclass(kw_only=True)
class PoolKeeper:
    """The one writer of Serve's config and of pool states. Not thread-safe: its owner calls one method at a time."""

    cluster: RayCluster
    applications: Sequence[Application]
    states: PoolStates
    jobs: Jobs
    nodes: Nodes | None = None
    alone: Callable[[], bool] = lambda: True
    """Whether it is the one still: asked before anything is changed, since an answer may have taken long."""
    clock: Callable[[], float] = time.monotonic
    _config: dict[str, Any] | None = None
    _builds: dict[str, int] = field(default_factory=dict)
    _failed: dict[str, float] = field(default_factory=dict)
    _scaled: dict[str, _Scaled] = field(default_factory=dict)
    _flickers: set[str] = field(default_factory=set)
    _said: dict[str, str] = field(default_factory=dict)
    _states: dict[str, PoolState] = field(default_factory=dict)
    _written: dict[str, PoolState] = field(default_factory=dict)

    def begin(self) -> None:
        """This process is the one from now on: whatever another has put there may be of another version, or for other pools."""
        self._config = None
        self._scaled.clear()
        self._states = {application.pool.name: self.states.get(application.pool.name) for application in self.applications}
        self._written = dict(self._states)

    def look(self) -> None:
        """Puts in order what is not, where Serve and the API server answer. Raises what the ledger does."""
        self._give()
        try:
            found = ServeState.read(self.cluster.applications())
            self._put(found)
        except OSError as error:
            self._say("serve", f"Ray does not answer: {error}")
            for name, state in self._states.items():
                self._states[name] = replace(state, message="Ray does not answer; the server's log has the reason", in_place=False)
            return
        self._say("serve", "")
        for application in self.applications:
            pool = application.pool
            application_state = found.applications.get(pool.name)
            self._follow(pool, application_state, busy=found.busy)
            self._states[pool.name] = self._state(pool, application_state)

    def write(self, problems: Mapping[str, Mapping[str, str]]) -> None:
        """Writes how pools stand where that has changed; `problems` by pool, see `PoolState`."""
        for name, state in self._states.items():
            self._states[name] = replace(state, problems=dict(problems.get(name, {})))
            if self._states[name] != self._written[name]:
                self.states.put(name, self._states[name])
                self._written[name] = self._states[name]

    def _give(self) -> None:
        """Which pools give a replica up, and for which job."""
        jobs = self.jobs.unended(SERVICES)
        moment: datetime = now()
        for application in self.applications:
            pool, state = application.pool, self._states[application.pool.name]
            job, most = given(pool, state, jobs, target=state.target, now=moment)
            if job != state.gives_to:
                logger.info(
                    "pools/%s: %s", pool.name, f"at most {most} replicas until {job} is over" if job else "gives nothing up any more"
                )
            self._states[pool.name] = replace(state, gives_to=job, most=most)

    def _put(self, found: ServeState) -> None:
        """Puts Serve's config in place where it has changed, where an application is missing, or was given up."""
        missing = False
        for application in self.applications:
            name = application.pool.name
            state = found.applications.get(name)
            missing = missing or (state is None and self._states[name].most > 0)
            if state is None or state.status != FAILED:
                self._failed.pop(name, None)
            elif self.clock() >= self._failed.setdefault(name, self.clock()) + AGAIN_SECONDS:
                del self._failed[name]
                self._builds[name] = self._builds.get(name, 0) + 1
        config = serve_config(self.cluster, self._schemas())
        if (missing or config != self._config) and self.alone():
            self.cluster.put_applications(config)
            self._config = config

    def _schemas(self) -> list[dict[str, Any]]:
        there = [(application, self._states[application.pool.name].most) for application in self.applications]
        return [one.schema(most=most, build=self._builds.get(one.pool.name, 0)) for one, most in there if most]

    def _follow(self, pool: Pool, state: ApplicationState | None, *, busy: frozenset[str]) -> None:
        """Lets the nodes follow the replicas, where they are a Deployment's."""
        nodes = self._nodes(pool) if pool.deployment else None
        if self.nodes is None or nodes is None or self._may_pass(pool.name, state) or not self.alone():
            return
        wanted = nodes_wanted(state, nodes, busy=busy, least=pool.min_replicas, most=self._states[pool.name].most)
        last = self._scaled.get(pool.name)
        if last and last.count == wanted and (wanted == len(nodes) or self.clock() < last.time + AGAIN_SECONDS):
            return
        try:
            self.nodes.scale(pool.name, wanted)
        except OSError as error:
            self._say(f"{pool.name} nodes", f"pools/{pool.name}: {error}")
            return
        self._say(f"{pool.name} nodes", "")
        if last is None or last.count != wanted:
            logger.info("pools/%s: %d nodes", pool.name, wanted)
        self._scaled[pool.name] = _Scaled(count=wanted, time=self.clock())

    def _may_pass(self, pool: str, state: ApplicationState | None) -> bool:
        """Whether an application without replicas is at its first look in being changed: where nothing has to be built, that is over by the
        second, and no node is worth starting for it."""
        flickers = state is not None and state.built and state.wants_node
        passes = flickers and pool not in self._flickers
        (self._flickers.add if flickers else self._flickers.discard)(pool)
        return passes

    def _state(self, pool: Pool, state: ApplicationState | None) -> PoolState:
        before = self._states[pool.name]
        if state is not None and state.message:
            self._say(pool.name, f"Serve says of pools/{pool.name}: {state.status} {state.message}")
        return replace(
            before,
            message=self._message(pool, state, before),
            in_place=bool(state and state.built and state.status != FAILED and before.most),
            target=state.target if state else 0,
            nodes=tuple(self._nodes(pool) or ()),
        )

    def _message(self, pool: Pool, state: ApplicationState | None, before: PoolState) -> str:
        """What a pool waits for."""
        if not before.most:
            return f"has given its device up until {before.gives_to} is over"
        parts = [WORDS.get(state.status, "") if state else "its application is being put in place"]
        idle = state is not None and state.built and not state.target
        if idle:
            parts.append("has no replica while nobody calls; a call starts one")
        nodes = self._nodes(pool)
        if nodes is not None and self.nodes is not None and not idle and not any(node.ready for node in nodes):
            trouble = self.nodes.trouble(pool.name)
            parts += [f"{node.name}: {node.reason}" for node in nodes[:1]] or [f"no node can be made: {trouble}" if trouble else ""]
        if before.gives_to:
            parts.append(f"has at most {before.most} replicas until {before.gives_to} is over")
        return "; ".join(filter(None, parts))

    def _nodes(self, pool: Pool) -> Sequence[PoolNode] | None:
        return self.nodes.of(pool.name) if self.nodes is not None else None

    def _say(self, what: str, sentence: str) -> None:
        """Each trouble once."""
        if sentence and sentence != self._said.get(what):
            logger.warning("%s", sentence)
        self._said[what] = sentence
