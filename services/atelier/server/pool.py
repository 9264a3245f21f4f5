"""A pool as the server sees it: what its replicas report, and which engines run a model on them."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import Kind
from atelier.engines.fingerprint import Fingerprint, is_of
from atelier.engines.manifest import EngineManifest, usable
from atelier.graphs.facts import from_configs
from atelier.graphs.graph import Role, read_graph
from atelier.pools import Pool
from atelier.server.deployments import Deployment, DeploymentLedger
from atelier.server.messages import fingerprint_from_message
from atelier.server.pool_states import PoolState, PoolStates
from atelier.v1 import replica_pb2, server_pb2


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a deployment stands."""

    state: server_pb2.DeploymentState.ValueType
    message: str
    engine: server_pb2.DeploymentEngine.ValueType = server_pb2.DEPLOYMENT_ENGINE_UNSPECIFIED
    engine_artifact: str = ""
    waits: bool = False
    """A call may wait where replicas are: for the weights, or for a replica."""


class Pools:
    """Reads reports, states and the catalog; thread-safe."""

    def __init__(self, *, pools: Sequence[Pool], deployments: DeploymentLedger, catalog: Catalog, states: PoolStates) -> None:
        self.by_name = {pool.name: pool for pool in pools}
        self._deployments = deployments
        self._catalog = catalog
        self._states = states
        self._graphs: dict[str, str] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    @property
    def serving(self) -> Sequence[str]:
        """Names of those that have replicas, and take not only jobs."""
        return [name for name, pool in self.by_name.items() if pool.max_replicas]

    def state(self, pool: str) -> PoolState:
        """What the process that looks after it knows of a pool."""
        return self._states.get(pool)

    def reports(self, pool: str) -> list[replica_pb2.ReportRequest]:
        """The reports of the replicas that are there."""
        return [replica_pb2.ReportRequest.FromString(content) for content in self._deployments.reports(pool)]

    def fingerprints(self, pool: str) -> list[Fingerprint]:
        """What the replicas are, each kind once; of a pool that has none now, what the last ones were. None where it never had any."""
        reports = self.reports(pool) or [replica_pb2.ReportRequest.FromString(one) for one in self._deployments.last_reports(pool)]
        found = {f.key: f for f in (fingerprint_from_message(report.fingerprint) for report in reports)}
        return list(found.values())

    def kinds(self, pool: str) -> list[Fingerprint | None]:
        """Likewise; None stands for what a pool is that never had any."""
        return [*self.fingerprints(pool)] or [None]

    def engines(self, model: str, fingerprint: Fingerprint) -> list[str]:
        """`artifacts/{digest}` of the engines that run a model's UNet on such a machine, the fastest first."""
        found = self._engines()
        return [found[id(one)][1] for one in usable([m for m, _ in found.values()], graph=self.graph(model), fingerprint=fingerprint)]

    def engines_of_product(self, model: str, pool: str) -> list[str]:
        """Likewise on some machine of the product that a pool is of: where no replica has told more yet."""
        graph, label = self.graph(model), self.by_name[pool].label
        return [name for one, name in self._engines().values() if one.graph == graph and is_of(label, one.fingerprint.label)]

    def engines_there(self, deployment: Deployment) -> list[str]:
        """The engines that run a deployment's model on the replicas of its pool."""
        kinds = self.fingerprints(deployment.pool)
        if not kinds:
            return self.engines_of_product(deployment.model, deployment.pool)
        return list(dict.fromkeys(engine for one in kinds for engine in self.engines(deployment.model, one)))

    def difference(self, engine: str, kind: Fingerprint) -> str:
        """In words, what an engine (its digest) was built for that a machine is not."""
        wanted = EngineManifest.from_metadata(self._catalog.get(engine).manifest.metadata).fingerprint
        return ", ".join(f"{name} {of or 'none'} (found {got or 'none'})" for name, (of, got) in wanted.differences(kind).items())

    def _engines(self) -> dict[int, tuple[EngineManifest, str]]:
        """All, with their names, by the manifest's identity."""
        records, _ = self._catalog.list(Kind.ENGINE, page_size=500, page_token="")
        found = [(EngineManifest.from_metadata(record.manifest.metadata), record.name) for record in records]
        return {id(manifest): (manifest, name) for manifest, name in found}

    def is_model(self, digest: str) -> bool:
        """Whether a deployment's artifact is a MODEL already; a SINGLE_FILE is converted first."""
        if digest in self._graphs:
            return True
        return self._catalog.get(digest).manifest.kind is Kind.MODEL

    def graph(self, model: str) -> str:
        """Digest of the graph of a model's UNet. `model` is the digest of a MODEL."""
        with self._lock:
            if model not in self._graphs:
                self._graphs[model] = self._read_graph(model)
            return self._graphs[model]

    def size(self, model: str) -> tuple[int, int]:
        """The picture size, width and height in pixels, that a model was trained for."""
        with self._lock:
            if model not in self._sizes:
                manifest = self._catalog.get(model).manifest
                configs = {
                    part: json.loads(b"".join(self._catalog.store.read_blob(file.sha256)))
                    for part in ("unet", "vae", "text_encoder", "scheduler")
                    for file in manifest.files
                    if file.path in (f"{part}/config.json", f"{part}/scheduler_config.json")
                }
                facts = from_configs(configs)
                self._sizes[model] = (facts.width, facts.height)
            return self._sizes[model]

    def status(self, deployment: Deployment) -> Status:
        """Where a deployment stands, by what the replicas report."""
        name, state = f"artifacts/{deployment.model}", self.state(deployment.pool)
        problem = state.problems.get(f"{deployment.name} {deployment.model}", "")
        reports = self.reports(deployment.pool)
        if deployment.pool not in self.serving:
            return _failed(f"pools/{deployment.pool} has no replicas any more: undeploy it, and deploy the model on another pool")
        if not self.is_model(deployment.model):
            return _failed(problem) if problem else _pending("the single file is being converted")
        if not reports:
            return self._status_without_replicas(deployment, state, problem)
        held = [model for report in reports for model in report.models if model.model == name]
        ready = [model for model in held if not model.error]
        if not held:
            return replace(_pending("its weights are being loaded"), waits=deployment.serve_eager)
        if not ready:
            return _failed(held[0].error)
        best = max(ready, key=lambda model: model.engine)
        eager = best.engine == server_pb2.DEPLOYMENT_ENGINE_EAGER
        if eager and not deployment.serve_eager:
            return _failed(problem) if problem else _pending("waits for an engine")
        message = "serves eager PyTorch while its engine is built" if eager and deployment.compile else ""
        if message and problem:
            message = f"serves eager PyTorch, since there is no engine: {problem}"
        return Status(state=server_pb2.DEPLOYMENT_STATE_READY, message=message, engine=best.engine, engine_artifact=best.engine_artifact)

    def _status_without_replicas(self, deployment: Deployment, state: PoolState, problem: str) -> Status:
        """A call may wait at Serve's proxy where the application is in place and the replica to come can answer it."""
        message = state.message or f"no replica of pools/{deployment.pool} is there yet"
        if not state.in_place:
            return _pending(message)
        if not deployment.serve_eager and not self.engines_there(deployment):
            return _failed(problem) if problem else _pending("waits for an engine")
        ready = not state.target
        return Status(
            state=server_pb2.DEPLOYMENT_STATE_READY if ready else server_pb2.DEPLOYMENT_STATE_PENDING, message=message, waits=True
        )

    def _read_graph(self, model: str) -> str:
        manifest = self._catalog.get(model).manifest
        store = self._catalog.store
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for file in manifest.files:
                if not file.path.startswith("unet/"):
                    continue
                (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
                local = store.local_path(file.sha256)
                if local is not None:
                    (folder / file.path).symlink_to(local.absolute())
                else:
                    (folder / file.path).write_bytes(b"".join(store.read_blob(file.sha256)))
            return read_graph(folder, Role.UNET).digest


def _pending(message: str) -> Status:
    return Status(state=server_pb2.DEPLOYMENT_STATE_PENDING, message=message)


def _failed(message: str) -> Status:
    return Status(state=server_pb2.DEPLOYMENT_STATE_FAILED, message=message)
