"""How workers end as Kubernetes Jobs, and what becomes of their jobs; the tests are kubelet, controllers and workers."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from google.rpc import status_pb2
from kubernetes_scene import Scene

from atelier.errors import AtelierError, Status
from atelier.jobs.events import error_bytes
from atelier.jobs.job import Checkpoint, State


async def test_a_pod_that_fails_leaves_its_last_lines_and_is_tried_three_times(scene: Scene) -> None:
    name = scene.submit()
    scene.api.logs["p"] = "loading\n" + json.dumps(
        {"level": "ERROR", "message": "the job failed", "exception": "Traceback\nValueError: no"}
    )
    async with scene.control():
        for number in range(3):
            job = await scene.job(name, number)
            scene.pod(job)
            scene.ledger.claim(name)
            scene.ended(job, 1)
        ended = await scene.until_state(name, State.FAILED)
    assert "exit code 1 and no word; 3 attempts failed" in status_pb2.Status.FromString(ended.error).message
    lines = ["the last lines of the worker's log:", "loading", "ERROR the job failed ValueError: no"]
    assert scene.said(name) == 3 * ["started", *lines, "the worker ended with exit code 1 and no word"]


async def test_a_worker_that_used_too_much_memory_is_told_so_and_begins_again(scene: Scene) -> None:
    name = scene.submit()
    async with scene.control():
        job = await scene.job(name)
        scene.ledger.claim(name)
        scene.ended(job, 137, reason="OOMKilled")
        await scene.job(name, 1)
    assert any("more memory than its limit (6Gi)" in sentence for sentence in scene.said(name))
    assert scene.ledger.get(name).failures == 1


async def test_a_worker_that_made_room_did_not_fail_even_before_it_claimed(scene: Scene) -> None:
    name = scene.submit()
    async with scene.control():
        for number in range(3):
            scene.ended(await scene.job(name, number), 143)
        await scene.job(name, 3)
    job = scene.ledger.get(name)
    assert (job.state, job.failures, job.attempt) == (State.PENDING, 0, 3)


async def test_a_pod_that_kubernetes_makes_anew_goes_on_under_the_same_job(scene: Scene) -> None:
    name = scene.submit()
    async with scene.control(silence_seconds=1.5) as _:
        job = await scene.job(name)
        scene.pod(job)
        scene.ledger.claim(name)
        why = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "made room for another"}
        scene.pod(job, phase="Failed", conditions=[why])
        await asyncio.sleep(2.5)  # longer than the silence of one that runs: the next pod waits for a node
        scene.pod(job, "q")
        scene.api.change("pods", "q", metadata={**scene.api.objects["pods"]["q"]["metadata"], "creationTimestamp": "2026-11-25T11:00:00Z"})
        attempt = scene.ledger.claim(name).attempt
        scene.ledger.complete(name, attempt, state=State.SUCCEEDED)
        scene.ended(job, 0, pod="q")
        await asyncio.sleep(0.8)
    assert attempt == 2 and list(scene.api.objects["jobs"]) == [job]
    assert any("PreemptionByScheduler: made room for another" in sentence for sentence in scene.said(name))


async def test_a_job_that_completes_without_its_workers_word_is_a_failed_attempt(scene: Scene) -> None:
    name = scene.submit()
    async with scene.control():
        job = await scene.job(name)
        scene.ledger.claim(name)
        scene.ended(job, 0)
        await scene.job(name, 1)
    assert scene.ledger.get(name).failures == 1 and "ended well without a word" in scene.said(name)[-1]


async def test_an_unknown_failure_that_the_worker_told_leaves_its_log_too(scene: Scene) -> None:
    name = scene.submit()
    scene.api.logs["p"] = "ValueError: no"
    async with scene.control():
        job = await scene.job(name)
        attempt = scene.ledger.claim(name).attempt
        error = error_bytes(AtelierError(Status.INTERNAL, "WORKER_FAILED", "the worker failed"))
        scene.ledger.complete(name, attempt, state=State.FAILED, error=error)
        scene.ended(job, 0)
        await scene.until(lambda: "ValueError: no" in scene.said(name))


@pytest.mark.parametrize("hangs", [False, True], ids=["gone at once", "its node is dead"])
async def test_a_silent_worker_is_removed_and_the_job_begins_again(scene: Scene, hangs: bool) -> None:
    name = scene.submit()
    scene.api.keeps = hangs
    scene.api.put("jobs", {"metadata": {"name": "x", "labels": {}}, "spec": {"template": {}}})
    async with scene.control():
        job = await scene.job(name)
        scene.pod(job)
        scene.ledger.claim(name)
    await asyncio.sleep(1)  # nobody is there to hear it
    began = time.monotonic()
    async with scene.control(silence_seconds=1.5):
        await scene.job(name, 1)
        assert time.monotonic() - began > 1.5
        await asyncio.sleep(0.8)
        assert scene.ledger.get(name).state is State.PENDING
    assert f"DELETE jobs/{job}" in scene.api.requests
    assert (job in scene.api.objects["jobs"]) is hangs
    assert "the worker was not heard of for 2 s" in scene.said(name)


async def test_a_waiting_job_that_is_cancelled_leaves_nothing(scene: Scene) -> None:
    name = scene.submit()
    async with scene.control(grace_seconds=60.0):
        job = await scene.job(name)
        scene.pod(job, phase="Pending")
        scene.ledger.cancel(name)
        await scene.until(lambda: job not in scene.api.objects["jobs"])
    assert not scene.api.objects["pods"]


@pytest.mark.parametrize("says_so", [True, False])
async def test_a_running_job_that_is_cancelled_leaves_nothing(scene: Scene, says_so: bool) -> None:
    name = scene.submit()
    async with scene.control():
        job = await scene.job(name)
        scene.pod(job)
        attempt = scene.ledger.claim(name).attempt
        await asyncio.sleep(0.8)
        assert scene.ledger.cancel(name).state is State.CANCELLING
        if says_so:
            scene.ledger.complete(name, attempt, state=State.CANCELLED)
            scene.ended(job, 0)
        await scene.until_state(name, State.CANCELLED)
        await scene.until(lambda: job not in scene.api.objects["jobs"])
    assert not scene.api.objects["pods"]


async def test_a_kubernetes_job_that_somebody_deletes_is_made_again_once_its_pod_has_ended(scene: Scene) -> None:
    name = scene.submit()
    async with scene.control():
        job = await scene.job(name)
        scene.pod(job)
        attempt = scene.ledger.claim(name).attempt
        await asyncio.sleep(0.8)
        with scene.api.changed:  # as `kubectl delete job` does: the pod has its grace
            scene.api._record("jobs", "DELETED", scene.api.objects["jobs"].pop(job))
        await asyncio.sleep(1)
        scene.ledger.checkpoint(name, attempt, Checkpoint(step=5, prefix="c", files=()), keep_full=1, keep_weights=1)
        scene.api.remove("pods", "p")
        await scene.job(name, 1)
    assert scene.ledger.get(name).failures == 0 and "the worker's Kubernetes Job was deleted" in scene.said(name)
