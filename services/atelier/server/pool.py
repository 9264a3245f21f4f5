"""A pool as the server sees it: what its replicas report, and which engines run a model on them."""

from __future__ import annotations

import json
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import Kind
from atelier.engines.fingerprint import Fingerprint
from atelier.engines.manifest import EngineManifest, usable
from atelier.graphs.facts import from_configs
from atelier.graphs.graph import Role, read_graph
from atelier.server.deployments import Deployment, DeploymentLedger
from atelier.server.messages import fingerprint_from_message
from atelier.v1 import replica_pb2, server_pb2


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a deployment stands."""

    state: server_pb2.DeploymentState.ValueType
    message: str
    engine: server_pb2.DeploymentEngine.ValueType = server_pb2.DEPLOYMENT_ENGINE_UNSPECIFIED
    engine_artifact: str = ""
    loading: bool = False
    """Nothing is missing but the weights on a replica: a call may wait for them there."""


class Pools:
    """Reads reports and the catalog; thread-safe. `labels`: each pool's name -> the product in its label."""

    def __init__(self, *, deployments: DeploymentLedger, catalog: Catalog, labels: dict[str, str]) -> None:
        self.labels = labels
        self._deployments = deployments
        self._catalog = catalog
        self._graphs: dict[str, str] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self.messages: dict[str, str] = {}
        """What a pool waits for, as its reconciler knows it."""
        self.targets: dict[str, int] = {}
        """How many replicas Serve wants, as the reconciler knows it."""
        self.problems: dict[tuple[str, str], str] = {}
        """Why a deployment with a model does not get its MODEL or engine, as the reconciler knows it."""

    def reports(self, pool: str) -> list[replica_pb2.ReportRequest]:
        """The reports of the replicas that are there."""
        return [replica_pb2.ReportRequest.FromString(content) for content in self._deployments.reports(pool)]

    def fingerprints(self, pool: str) -> list[Fingerprint]:
        """What the replicas are, each kind once."""
        found = {f.key: f for f in (fingerprint_from_message(report.fingerprint) for report in self.reports(pool))}
        return list(found.values())

    def engines(self, model: str, fingerprint: Fingerprint) -> list[str]:
        """`artifacts/{digest}` of the engines that run a model's UNet on such a machine, the fastest first."""
        records, _ = self._catalog.list(Kind.ENGINE, page_size=500, page_token="")
        manifests = {id(m): (r, m) for r in records for m in [EngineManifest.from_metadata(r.manifest.metadata)]}
        fitting = usable([m for _, m in manifests.values()], graph=self.graph(model), fingerprint=fingerprint)
        return [manifests[id(manifest)][0].name for manifest in fitting]

    def engines_there(self, deployment: Deployment) -> list[str]:
        """The engines that run a deployment's model on the replicas of its pool."""
        found = [engine for one in self.fingerprints(deployment.pool) for engine in self.engines(deployment.model, one)]
        return list(dict.fromkeys(found))

    def is_model(self, digest: str) -> bool:
        """Whether a deployment's artifact is a MODEL already; a SINGLE_FILE is converted first."""
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
        name, problem = f"artifacts/{deployment.model}", self.problems.get((deployment.name, deployment.model), "")
        reports = self.reports(deployment.pool)
        if not self.is_model(deployment.model):
            return _failed(problem) if problem else _pending("the single file is being converted")
        if not reports:
            return _pending(self.messages.get(deployment.pool) or f"no replica of pools/{deployment.pool} is there yet")
        held = [model for report in reports for model in report.models if model.model == name]
        ready = [model for model in held if not model.error]
        if not held:
            return replace(_pending("its weights are being loaded"), loading=deployment.serve_eager)
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
