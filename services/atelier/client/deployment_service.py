"""Deployments and pools, from the client's side."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence

import grpc
from google.protobuf import field_mask_pb2

from atelier.client.calls import Calls
from atelier.errors import AtelierError, Status, failed_precondition
from atelier.v1 import server_pb2, server_pb2_grpc


class DeploymentService:
    """Puts models into service. A name may be given with or without `deployments/`."""

    def __init__(self, channel: grpc.Channel, calls: Calls) -> None:
        self._stub = server_pb2_grpc.ServerStub(channel)
        self._calls = calls

    def create(self, name: str, deployment: server_pb2.Deployment, *, validate_only: bool = False) -> server_pb2.Deployment:
        """Makes a deployment; it becomes READY by itself. Raises ALREADY_EXISTS."""
        request = server_pb2.CreateDeploymentRequest(
            deployment_id=name.removeprefix("deployments/"),
            deployment=deployment,
            request_id=secrets.token_hex(16),
            validate_only=validate_only,
        )
        return self._calls.unary(self._stub.CreateDeployment, request, idempotent=True)

    def update(self, name: str, deployment: server_pb2.Deployment, *fields: str) -> server_pb2.Deployment:
        """Changes the named fields: another model, without a restart."""
        changed = server_pb2.Deployment()
        changed.CopyFrom(deployment)
        changed.name = full_name(name)
        request = server_pb2.UpdateDeploymentRequest(deployment=changed, update_mask=field_mask_pb2.FieldMask(paths=fields))
        return self._calls.unary(self._stub.UpdateDeployment, request, idempotent=not deployment.etag)

    def get(self, name: str) -> server_pb2.Deployment:
        """One deployment. Raises NOT_FOUND."""
        return self._calls.unary(self._stub.GetDeployment, server_pb2.GetDeploymentRequest(name=full_name(name)), idempotent=True)

    def list(self) -> Iterator[server_pb2.Deployment]:
        """All deployments, by name."""
        token = ""
        while True:
            page = self._calls.unary(self._stub.ListDeployments, server_pb2.ListDeploymentsRequest(page_token=token), idempotent=True)
            yield from page.deployments
            token = page.next_page_token
            if not token:
                return

    def delete(self, name: str) -> None:
        """Deletes a deployment."""
        self._calls.unary(self._stub.DeleteDeployment, server_pb2.DeleteDeploymentRequest(name=full_name(name)), idempotent=False)

    def pools(self) -> Sequence[server_pb2.Pool]:
        """The pools, by name."""
        return tuple(self._calls.unary(self._stub.ListPools, server_pb2.ListPoolsRequest(), idempotent=True).pools)

    def plan_engines(self) -> Sequence[server_pb2.PlannedEngine]:
        """The engines that the deployments need, by pool and graph: there, being built, or to be built."""
        return tuple(self._calls.unary(self._stub.PlanEngines, server_pb2.PlanEnginesRequest(), idempotent=True).engines)

    def wait(self, name: str, *, timeout_seconds: float = 600.0) -> Iterator[server_pb2.Deployment]:
        """The deployment each time it has changed, until it is READY. Raises FAILED_PRECONDITION when it cannot become so."""
        end, shown = time.monotonic() + timeout_seconds, b""
        while True:
            deployment = self.get(name)
            if (now := deployment.SerializeToString(deterministic=True)) != shown:
                shown = now
                yield deployment
            if deployment.state == server_pb2.DEPLOYMENT_STATE_READY:
                return
            if deployment.state == server_pb2.DEPLOYMENT_STATE_FAILED:
                raise failed_precondition("DEPLOYMENT_FAILED", f"{deployment.name} cannot answer: {deployment.message}")
            if time.monotonic() > end:
                sentence = f"{deployment.name} is not ready after {timeout_seconds:g} s: {deployment.message}"
                raise AtelierError(Status.DEADLINE_EXCEEDED, "DEPLOYMENT_NOT_READY", sentence)
            time.sleep(0.25)


def full_name(name: str) -> str:
    """`deployments/{id}`."""
    return name if name.startswith("deployments/") else f"deployments/{name}"
