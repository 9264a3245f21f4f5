"""The Server service: what shall be served."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable
from typing import Any

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import Kind
from atelier.errors import AtelierError, Violation, invalid
from atelier.jobs.ledger import JobLedger
from atelier.jobs.submission import MAX_REQUEST_ID
from atelier.pools import choose
from atelier.server.deployments import Deployment, DeploymentLedger
from atelier.server.plan import plan
from atelier.server.pool import Pools
from atelier.server.pool_messages import planned_to_message, pool_to_message
from atelier.server.yielding import SERVICES, waiting
from atelier.v1 import server_pb2, server_pb2_grpc

ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
CHANGEABLE = ("model", "serve_eager", "compile", "max_steps", "max_count")
MAX_STEPS, MAX_COUNT = 1000, 64


class ServerServicer(server_pb2_grpc.ServerServicer):
    """Keeps deployments; the reconciler and the replicas do the rest. `changed` tells them."""

    def __init__(
        self, *, deployments: DeploymentLedger, pools: Pools, catalog: Catalog, jobs: JobLedger, changed: Callable[[], None]
    ) -> None:
        self._deployments = deployments
        self._pools = pools
        self._catalog = catalog
        self._jobs = jobs
        self._changed = changed

    async def CreateDeployment(self, request: server_pb2.CreateDeploymentRequest, context: Any) -> server_pb2.Deployment:  # type: ignore[override]
        """Makes a deployment."""
        return await asyncio.to_thread(self._create, request)

    async def GetDeployment(self, request: server_pb2.GetDeploymentRequest, context: Any) -> server_pb2.Deployment:  # type: ignore[override]
        """One deployment."""
        return await asyncio.to_thread(lambda: self._message(self._deployments.get(request.name)))

    async def ListDeployments(  # type: ignore[override]
        self, request: server_pb2.ListDeploymentsRequest, context: Any
    ) -> server_pb2.ListDeploymentsResponse:
        """A page of deployments."""
        if request.page_size < 0 or (request.page_token and not request.page_token.isdecimal()):
            raise invalid([Violation("page_size", "must not be negative"), Violation("page_token", "must be one that was given out")])
        offset, size = int(request.page_token or 0), min(request.page_size or 50, 500)
        rows = await asyncio.to_thread(self._deployments.all)
        page = await asyncio.to_thread(lambda: [self._message(row) for row in rows[offset : offset + size]])
        token = str(offset + size) if len(rows) > offset + size else ""
        return server_pb2.ListDeploymentsResponse(deployments=page, next_page_token=token)

    async def UpdateDeployment(self, request: server_pb2.UpdateDeploymentRequest, context: Any) -> server_pb2.Deployment:  # type: ignore[override]
        """Changes a deployment."""
        return await asyncio.to_thread(self._update, request)

    async def DeleteDeployment(  # type: ignore[override]
        self, request: server_pb2.DeleteDeploymentRequest, context: Any
    ) -> server_pb2.DeleteDeploymentResponse:
        """Deletes a deployment."""
        await asyncio.to_thread(self._deployments.delete, request.name)
        self._changed()
        return server_pb2.DeleteDeploymentResponse()

    async def ListPools(self, request: server_pb2.ListPoolsRequest, context: Any) -> server_pb2.ListPoolsResponse:  # type: ignore[override]
        """The pools, with what their replicas report."""
        return server_pb2.ListPoolsResponse(pools=await asyncio.to_thread(self._list_pools))

    async def PlanEngines(self, request: server_pb2.PlanEnginesRequest, context: Any) -> server_pb2.PlanEnginesResponse:  # type: ignore[override]
        """Which engines are there, and which have to be built."""
        planned = await asyncio.to_thread(lambda: plan(self._deployments.all(), self._pools, self._jobs))
        return server_pb2.PlanEnginesResponse(engines=map(planned_to_message, planned))

    def _create(self, request: server_pb2.CreateDeploymentRequest) -> server_pb2.Deployment:
        violations = []
        if not ID.fullmatch(request.deployment_id):
            violations.append(Violation("deployment_id", "use lower case letters, digits and dashes, at most 63"))
        if len(request.request_id) > MAX_REQUEST_ID:
            violations.append(Violation("request_id", f"at most {MAX_REQUEST_ID} characters, got {len(request.request_id)}"))
        wanted = self._checked(Deployment(id=request.deployment_id, model="", pool=""), request.deployment, None, violations)
        if request.validate_only:
            return self._message(wanted)
        made = self._deployments.create(
            wanted, request_id=request.request_id, body=request.deployment.SerializeToString(deterministic=True)
        )
        self._changed()
        return self._message(made)

    def _update(self, request: server_pb2.UpdateDeploymentRequest) -> server_pb2.Deployment:
        current = self._deployments.get(request.deployment.name)
        paths = list(request.update_mask.paths) or [f.name for f, _ in request.deployment.ListFields() if f.name in CHANGEABLE]
        violations = [Violation("update_mask", f"{p} cannot be changed; {', '.join(CHANGEABLE)} can") for p in paths if p not in CHANGEABLE]
        wanted = self._checked(current, request.deployment, paths, violations)
        changed = self._deployments.update(wanted, etag=request.deployment.etag)
        self._changed()
        return self._message(changed)

    def _checked(
        self, current: Deployment, given: server_pb2.Deployment, paths: list[str] | None, violations: list[Violation]
    ) -> Deployment:
        values: dict[str, Any] = {}
        if paths is None or "model" in paths:
            values["model"] = self._model(given.model, violations)
        if paths is None:
            values["pool"], problem = self._pool(given.pool)
            violations += [Violation("deployment.pool", problem)] if problem else []
            values["serve_eager"] = not problem and self._pools.by_name[values["pool"]].serve_eager
        for name in ("serve_eager", "compile"):
            if given.HasField(name) and (paths is None or name in paths):  # type: ignore[arg-type]
                values[name] = getattr(given, name)
        for name, most in (("max_steps", MAX_STEPS), ("max_count", MAX_COUNT)):
            value = getattr(given, name)
            if value and (paths is None or name in paths):
                values[name] = value
            if not 0 <= value <= most:
                violations.append(Violation(f"deployment.{name}", f"must be between 1 and {most}, got {value}"))
        if violations:
            raise invalid(violations)
        return dataclasses.replace(current, **values)

    def _pool(self, name: str) -> tuple[str, str]:
        """The pool behind a name, and what is wrong with that."""
        pool, problem = choose(name, self._pools.serving)
        there = self._pools.by_name.get(name.removeprefix("pools/"))
        if problem and name.startswith("pools/") and there is not None:
            serving = ", ".join(f"pools/{one}" for one in sorted(self._pools.serving)) or "none"
            problem = f"{name} has no replicas and takes jobs only; there serve: {serving}"
        return pool, problem

    def _model(self, name: str, violations: list[Violation]) -> str:
        if not name:
            violations.append(Violation("deployment.model", "must be set"))
            return ""
        try:
            record = self._catalog.get(name)
        except AtelierError as error:
            violations.append(Violation("deployment.model", error.message))
            return ""
        if record.manifest.kind not in (Kind.MODEL, Kind.SINGLE_FILE):
            problem = f"{name} is a {record.manifest.kind}; expected MODEL or SINGLE_FILE (merge a LORA into a model first)"
            violations.append(Violation("deployment.model", problem))
        return record.digest

    def _message(self, deployment: Deployment) -> server_pb2.Deployment:
        status = self._pools.status(deployment)
        message = server_pb2.Deployment(
            name=deployment.name,
            model=f"artifacts/{deployment.model}",
            pool=f"pools/{deployment.pool}",
            serve_eager=deployment.serve_eager,
            compile=deployment.compile,
            max_steps=deployment.max_steps,
            max_count=deployment.max_count,
            state=status.state,
            message=status.message,
            engine=status.engine,
            engine_artifact=status.engine_artifact,
            etag=deployment.etag,
        )
        if deployment.create_time:
            message.create_time.FromDatetime(deployment.create_time)
        return message

    def _list_pools(self) -> list[server_pb2.Pool]:
        jobs = self._jobs.unended(SERVICES)
        return [
            pool_to_message(pool, self._pools.state(name), self._pools.reports(name), waiting(jobs, name))
            for name, pool in sorted(self._pools.by_name.items())
        ]
