"""Installations whose trainer starts workers on Kubernetes, for tests of the launcher with the reconciler and a ledger."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from api_server import NAMESPACE, ApiServer
from kubernetes import client

from atelier.jobs.job import Job, NewJob, State
from atelier.jobs.ledger import JobLedger
from atelier.jobs.messages import event_to_message
from atelier.jobs.reconciler import Reconciler
from atelier.kubernetes.launcher import KubernetesLauncher
from atelier.kubernetes.worker_pods import OF_JOB
from atelier.ledger import Database
from atelier.migrations import migrate
from atelier.pools import Pool

LABELS = {"app.kubernetes.io/instance": "atelier", "atelier.dev/service": "trainer"}
MANIFEST: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"labels": LABELS, "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "atelier-workers"}]},
    "spec": {
        "template": {
            "metadata": {"labels": LABELS},
            "spec": {"containers": [{"name": "worker", "command": ["python", "-m", "atelier.trainer"]}]},
        }
    },
}


class Trainer:
    """An installation whose trainer starts workers by an API server. `manifest`: of its workers' Jobs."""

    def __init__(
        self, folder: Path, connect: Callable[[], client.CoreV1Api], *, namespace: str, manifest: Mapping[str, Any], pools: Sequence[Pool]
    ) -> None:
        self.database = Database(f"sqlite:///{folder}/ledger.db")
        migrate(self.database)
        self.ledger = JobLedger(self.database)
        (folder / "trainer.json").write_text(json.dumps(manifest))
        self._folder = folder
        self._connect = connect
        self._namespace = namespace
        self._pools = pools

    def submit(self, pool: str = "a10") -> str:
        new = NewJob(service="trainer", method="Train", request_id="", body_sha256="a" * 64, spec=b"", pool=pool)
        return self.ledger.submit(new).name

    @asynccontextmanager
    async def control(self, **more: Any) -> AsyncIterator[Reconciler]:
        """A control process, which can be one of several."""
        launcher = KubernetesLauncher(
            self._connect(), namespace=self._namespace, manifests=self._folder, services=["trainer"], pools=self._pools,
            token_of=lambda name: f"token of {name}",
        )  # fmt: skip
        given = {"ledger": self.ledger, "launcher": launcher, "services": ["trainer"], "max_workers": 0, "grace_seconds": 1.0} | more
        reconciler = Reconciler(**given)
        async with reconciler.running():
            yield reconciler

    async def until(self, holds: Callable[[], Any], *, seconds: float = 15) -> None:
        """Waits; where it does not come true, shows the jobs."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, self.trouble()
            await asyncio.sleep(0.02)

    def trouble(self) -> str:
        return str(self.ledger.page(state=None, page_size=10, page_token="")[0])

    async def until_state(self, name: str, state: State) -> Job:
        await self.until(lambda: self.ledger.get(name).state is state)
        return self.ledger.get(name)

    def said(self, name: str) -> list[str]:
        """Lines and reasons in the job's events."""
        events = [event_to_message(event) for event in self.ledger.events(name, after_sequence=0)[0]]
        kinds = {"log": lambda e: e.log.message, "attempt": lambda e: e.attempt.reason}
        return [kinds[kind](event) for event in events if (kind := str(event.WhichOneof("event"))) in kinds]


class Scene(Trainer):
    """One on an API server in miniature; tests are kubelet, controllers and workers."""

    def __init__(self, folder: Path, api: ApiServer) -> None:
        super().__init__(folder, api.core, namespace=NAMESPACE, manifest=MANIFEST, pools=[Pool(name="a10", gpu="NVIDIA-A10")])
        self.api = api
        api.put("configmaps", {"metadata": {"name": "atelier-workers", "uid": "the-owner"}})

    def trouble(self) -> str:
        return f"{self.api.requests} {list(self.api.objects['jobs'])} {super().trouble()}"

    async def job(self, name: str, number: int = 0) -> str:
        """Name of the Kubernetes Job, once it is there."""
        made = f"atelier-trainer-{name.removeprefix('jobs/')}-{number}"
        await self.until(lambda: made in self.api.objects["jobs"])
        return made

    def pod(self, job: str, name: str = "p", phase: str = "Running", **status: Any) -> None:
        """The Job controller makes a pod, or the kubelet reports of it."""
        labels = {**self.api.objects["jobs"][job]["metadata"]["labels"], OF_JOB: job}
        spec = {"containers": [{"name": "worker", "resources": {"limits": {"memory": "6Gi"}}}]}
        self.api.put("pods", {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"phase": phase, **status}})

    def ended(self, job: str, code: int, *, pod: str = "p", reason: str = "Error") -> None:
        """A pod ended, and its Job with it."""
        terminated = {"exitCode": code, "reason": reason}
        status = {"name": "worker", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": {"terminated": terminated}}
        self.pod(job, pod, "Failed" if code else "Succeeded", containerStatuses=[status])
        condition = {"type": "Failed" if code else "Complete", "status": "True", "reason": "BackoffLimitExceeded"}
        self.api.change("jobs", job, status={"conditions": [condition]})
