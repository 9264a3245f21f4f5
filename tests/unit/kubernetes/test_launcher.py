"""Workers as Kubernetes Jobs under the reconciler: made once, adopted, waited for; the tests are kubelet, controllers and workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from api_server import NAMESPACE, ApiServer
from kubernetes_scene import LABELS, MANIFEST, Scene

from atelier.jobs.job import State
from atelier.lease import Lease


async def test_a_job_becomes_one_kubernetes_job_that_the_next_control_process_adopts(scene: Scene) -> None:
    name = scene.submit()
    async with scene.control():
        job = await scene.job(name)
        made = scene.api.objects["jobs"][job]
        assert made["metadata"]["ownerReferences"][0]["uid"] == "the-owner"
        assert {"name": "ATELIER_JOB_TOKEN", "value": f"token of {name}"} in made["spec"]["template"]["spec"]["containers"][0]["env"]
        scene.pod(job)
        attempt = scene.ledger.claim(name).attempt
    assert list(scene.api.objects["jobs"]) == [job]
    async with scene.control():
        await asyncio.sleep(1.2)
        assert not scene.ledger.heartbeat(name, attempt)
        scene.ledger.complete(name, attempt, state=State.SUCCEEDED)
        scene.ended(job, 0)
        await asyncio.sleep(0.8)
    assert scene.api.requests.count("POST jobs") == 1 and "DELETE" not in " ".join(scene.api.requests)
    assert scene.said(name) == ["started"]


async def test_one_watch_a_kind_serves_all_jobs(scene: Scene) -> None:
    names = [scene.submit() for _ in range(5)]
    async with scene.control():
        for name in names:
            scene.pod(await scene.job(name), f"p-{name[-4:]}")
        await asyncio.sleep(1.5)
    kinds = ("jobs", "pods", "events")
    assert [[scene.api.requests.count(f"{verb} {kind}") for kind in kinds] for verb in ("GET", "WATCH")] == [[1, 1, 1], [1, 1, 1]]


async def test_what_a_pod_waits_for_is_an_event_once_and_over_when_it_begins(scene: Scene) -> None:
    name = scene.submit()
    sentence = "0/3 nodes are available: 2 Insufficient nvidia.com/gpu."
    for _ in range(2):  # the second control process has seen none of it
        async with scene.control():
            job = await scene.job(name)
            scene.pod(job, phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": sentence}])
            about = {"involvedObject": {"name": "p", "kind": "Pod"}, "reason": "FailedScheduling", "message": sentence, "type": "Warning"}
            scene.api.put("events", {"metadata": {"name": "e", "namespace": NAMESPACE}, **about})
            await scene.until(lambda: scene.ledger.get(name).waits_for == sentence)
            await asyncio.sleep(0.8)
    assert scene.said(name) == [sentence]
    async with scene.control():
        scene.pod(job)
        await scene.until(lambda: not scene.ledger.get(name).waits_for)


async def test_a_job_whose_making_was_not_heard_of_is_not_made_twice(scene: Scene) -> None:
    name = scene.submit()
    metadata = {"name": f"atelier-trainer-{name[5:]}-0", "labels": LABELS}
    made = scene.api.put("jobs", {**MANIFEST, "metadata": metadata})["metadata"]["name"]
    async with scene.control():  # without the label it is met by its name alone, as one that the watch has not told of yet
        await scene.until(lambda: "is there already" in scene.ledger.get(name).waits_for)
        scene.api.change("jobs", made, metadata={**metadata, "labels": {**LABELS, "atelier.dev/job": name[5:]}})
        scene.pod(made)
        await scene.until(lambda: not scene.ledger.get(name).waits_for)
    assert list(scene.api.objects["jobs"]) == [made]


async def test_an_api_server_that_is_away_delays_jobs_and_loses_none(tmp_path: Path) -> None:
    api = ApiServer()
    scene = Scene(tmp_path, api)
    name = scene.submit()
    with api.running():
        pass
    async with scene.control():
        await asyncio.sleep(0.8)
        with api.running():
            job = await scene.job(name)
            scene.pod(job)
        attempt = scene.ledger.claim(name).attempt
        second = scene.submit()
        await scene.until(lambda: "cannot be" in scene.ledger.get(second).waits_for)
        assert scene.ledger.get(name).attempt == attempt
        with api.running():
            await scene.job(second)
            assert scene.ledger.get(name).state is State.RUNNING
    scene.database.close()


async def test_a_job_that_the_api_server_refuses_says_why_and_holds_up_no_other(scene: Scene) -> None:
    gone, name = scene.submit(pool="gone"), scene.submit()
    scene.api.refusals["POST jobs"] = (403, "exceeded quota: jobs, used: count/jobs.batch=3")
    async with scene.control():
        await scene.until(lambda: "exceeded quota: jobs" in scene.ledger.get(name).waits_for)
        scene.api.refusals.clear()
        await scene.job(name)
        assert "no pools/gone any more" in scene.ledger.get(gone).waits_for
    assert len([sentence for sentence in scene.said(name) if "exceeded quota" in sentence]) == 1


async def test_what_was_left_of_a_job_that_is_over_is_removed(scene: Scene) -> None:
    name = scene.submit()
    async with scene.control():
        job = await scene.job(name)
        scene.pod(job, phase="Pending")
    scene.ledger.cancel(name)  # while no control process was there
    async with scene.control():
        await scene.until(lambda: job not in scene.api.objects["jobs"])


async def test_of_two_control_processes_one_starts_workers_and_the_other_takes_over(scene: Scene) -> None:
    def lease() -> Lease:
        return Lease(database=scene.database, name="workers-trainer", term_seconds=3)

    async with scene.control(lease=lease()):
        job = await scene.job(scene.submit())
        async with scene.control(lease=lease()):
            second = scene.submit()
            await scene.job(second)
            await asyncio.sleep(1)
            assert scene.api.requests.count("POST jobs") == 2 and scene.api.requests.count("WATCH jobs") == 1
    async with scene.control(lease=lease()):
        await scene.job(scene.submit())
    assert job in scene.api.objects["jobs"] and scene.api.requests.count("POST jobs") == 3
