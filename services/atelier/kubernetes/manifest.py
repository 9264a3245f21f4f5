"""The Kubernetes Job of a worker: the chart's manifest for its service, filled in for one job."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError, failed_precondition
from atelier.jobs.job import Job
from atelier.jobs.launcher import NotNow, several
from atelier.pools import Pool

JOB = "atelier.dev/job"
"""Label with the id of the job."""
SERVICE = "atelier.dev/service"
INSTANCE = "app.kubernetes.io/instance"
POOL = "atelier.dev/pool"
PRODUCT = "nvidia.com/gpu.product"
CONTAINER = "worker"


def read_manifests(folder: Path, services: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each service's manifest. Raises FAILED_PRECONDITION naming the file that is missing or is no Job."""
    return {service: _read(folder / f"{service}.json") for service in services}


def job_name(manifest: Mapping[str, Any], job: Job) -> str:
    """Name of the Kubernetes Job for the attempt that comes next; the same until that has begun, so that making it twice is harmless."""
    instance = manifest["metadata"]["labels"].get(INSTANCE, "atelier")
    return f"{instance[:30].rstrip('-')}-{job.service}-{job.id}-{job.attempt}"


def filled(manifest: Mapping[str, Any], job: Job, *, token: str, pool: Pool | None, owner_uid: str) -> dict[str, Any]:
    """The Job to make. `token` is good for this job alone; `pool` is where it has to run, None for anywhere."""
    made: dict[str, Any] = copy.deepcopy(dict(manifest))
    labels = {JOB: job.id, **({POOL: pool.name} if pool else {})}
    made["metadata"]["name"] = job_name(manifest, job)
    for owner in made["metadata"].get("ownerReferences", ()):
        owner["uid"] = owner_uid
    template = made["spec"]["template"]
    for metadata in (made["metadata"], template["metadata"]):
        metadata["labels"] = {**metadata.get("labels", {}), **labels}
    (container,) = (one for one in template["spec"]["containers"] if one["name"] == CONTAINER)
    container.setdefault("env", []).extend([{"name": "ATELIER_JOB", "value": job.name}, {"name": "ATELIER_JOB_TOKEN", "value": token}])
    if job.processes > 1:
        python, _, module = container["command"]
        container["command"] = [python, *several(module, job.processes)]
    if pool is not None:
        _place(template["spec"], container, pool, devices=max(pool.gpus, job.processes if pool.gpu else 0))
    return made


def pool_of(job: Job, pools: Mapping[str, Pool]) -> Pool | None:
    """Where a job runs. Raises NotNow where its pool is no more."""
    if not job.pool:
        return None
    if job.pool not in pools:
        raise NotNow(f"there is no pools/{job.pool} any more: bring it back, or cancel the job")
    return pools[job.pool]


def _place(spec: dict[str, Any], container: dict[str, Any], pool: Pool, *, devices: int) -> None:
    selector = {**pool.node_selector, **({PRODUCT: pool.gpu} if pool.gpu else {})}
    spec["nodeSelector"] = {**spec.get("nodeSelector", {}), **selector}
    spec["tolerations"] = [*spec.get("tolerations", ()), *pool.tolerations]
    resources = container.setdefault("resources", {})
    if pool.resource_claims:
        spec["resourceClaims"] = [*spec.get("resourceClaims", ()), *pool.resource_claims]
        resources["claims"] = [*resources.get("claims", ()), *({"name": claim["name"]} for claim in pool.resource_claims)]
    elif devices:
        for kind in ("requests", "limits"):
            resources[kind] = {**resources.get(kind, {}), pool.resource_name: str(devices)}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    if not isinstance(content, dict) or content.get("kind") != "Job":
        raise _unusable(path, "it is no manifest of a Job")
    return content


def _unusable(path: Path, why: str) -> AtelierError:
    return failed_precondition("WORKERS_DIR", f"ATELIER_WORKERS_DIR: {path} cannot be used: {why}")
