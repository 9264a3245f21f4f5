"""A worker's Job: the chart's manifest, filled in for one job."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import AtelierError
from atelier.jobs.job import Job, State
from atelier.jobs.launcher import NotNow
from atelier.kubernetes.manifest import filled, job_name, pool_of, read_manifests
from atelier.pools import Pool

MANIFEST: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {
        "labels": {"app.kubernetes.io/instance": "atelier", "atelier.dev/service": "trainer"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "atelier-workers"}],
    },
    "spec": {
        "template": {
            "metadata": {"labels": {"atelier.dev/service": "trainer"}},
            "spec": {
                "nodeSelector": {"disk": "fast"},
                "containers": [
                    {"name": "worker", "command": ["python", "-m", "atelier.trainer"], "resources": {"limits": {"memory": "6Gi"}}},
                    {"name": "sidecar"},
                ],
            },
        }
    },
}
A10 = Pool(name="a10", gpu="NVIDIA-A10", node_selector={"zone": "a"}, tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},))


def a_job(**more: Any) -> Job:
    values: dict[str, Any] = {
        "id": "12ab", "service": "trainer", "method": "Train", "spec": b"", "state": State.PENDING, "attempt": 0, "failures": 0,
        "create_time": datetime.now(UTC), "start_time": None, "end_time": None, "heartbeat_time": None, "last_sequence": 0, "progress": b"",
        "error": b"", "outputs": (), "inputs": (), "reads": (), "plan": (), "tags": (), "processes": 1, "pool": "a10", "waits_for": "",
    }  # fmt: skip
    return Job(**{**values, **more})


def test_a_job_of_a_gpu_pool_asks_for_its_product_and_devices() -> None:
    before = copy.deepcopy(MANIFEST)
    made = filled(MANIFEST, a_job(), token="t", pool=A10, owner_uid="u")
    template = made["spec"]["template"]
    worker, sidecar = template["spec"]["containers"]
    assert template["spec"]["nodeSelector"] == {"disk": "fast", "zone": "a", "nvidia.com/gpu.product": "NVIDIA-A10"}
    assert template["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert worker["resources"] == {"limits": {"memory": "6Gi", "nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}
    assert {"name": "ATELIER_JOB", "value": "jobs/12ab"} in worker["env"] and {"name": "ATELIER_JOB_TOKEN", "value": "t"} in worker["env"]
    assert made["metadata"]["labels"]["atelier.dev/job"] == template["metadata"]["labels"]["atelier.dev/job"] == "12ab"
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u" and sidecar == {"name": "sidecar"}
    assert before == MANIFEST


def test_each_process_of_a_run_has_a_device() -> None:
    made = filled(MANIFEST, a_job(processes=2), token="t", pool=A10, owner_uid="u")
    worker = made["spec"]["template"]["spec"]["containers"][0]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert worker["command"] == ["python", "-m", "atelier.jobs.several", "2", "atelier.trainer"]


def test_a_slice_of_a_gpu_is_asked_for_by_its_resource() -> None:
    pool = Pool(name="a10", gpu="NVIDIA-A100", resource_name="nvidia.com/mig-1g.10gb")
    made = filled(MANIFEST, a_job(), token="t", pool=pool, owner_uid="u")
    assert made["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == "1"


def test_a_device_may_be_claimed_instead() -> None:
    claim = {"name": "gpu", "resourceClaimTemplateName": "a10"}
    made = filled(MANIFEST, a_job(), token="t", pool=Pool(name="a10", gpu="NVIDIA-A10", resource_claims=(claim,)), owner_uid="u")
    spec = made["spec"]["template"]["spec"]
    assert spec["resourceClaims"] == [claim]
    assert spec["containers"][0]["resources"] == {"limits": {"memory": "6Gi"}, "claims": [{"name": "gpu"}]}


def test_a_cpu_pools_job_asks_for_no_device() -> None:
    made = filled(MANIFEST, a_job(), token="t", pool=Pool(name="cpu"), owner_uid="u")
    spec = made["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"disk": "fast"} and spec["containers"][0]["resources"] == {"limits": {"memory": "6Gi"}}


def test_a_name_is_the_same_until_its_attempt_has_begun() -> None:
    assert job_name(MANIFEST, a_job()) == job_name(MANIFEST, a_job()) == "atelier-trainer-12ab-0"
    assert job_name(MANIFEST, a_job(attempt=2)) == "atelier-trainer-12ab-2"


def test_a_job_without_a_pool_runs_anywhere_and_one_whose_pool_is_gone_waits() -> None:
    assert pool_of(a_job(pool=""), {"a10": A10}) is None and pool_of(a_job(), {"a10": A10}) is A10
    with pytest.raises(NotNow, match="no pools/h100 any more"):
        pool_of(a_job(pool="h100"), {"a10": A10})


def test_a_folder_without_the_manifests_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "trainer.json").write_text(json.dumps(MANIFEST))
    assert read_manifests(tmp_path, ["trainer"]) == {"trainer": MANIFEST}
    (tmp_path / "compiler.json").write_text("{}")
    for service in ("converter", "compiler"):
        with pytest.raises(AtelierError, match=f"{service}.json cannot be used"):
            read_manifests(tmp_path, [service])
