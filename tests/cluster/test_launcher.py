"""Workers as Jobs of a real Kubernetes, made from the chart's own manifest: its scheduler, Job controller and kubelet, with a small program
in the place of training (the ledger says then what a worker would have said itself)."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_scene import Trainer

from atelier.jobs.job import State
from atelier.kubernetes.objects import core
from atelier.pools import Pool
from cluster.images import PROBE_IMAGE
from cluster.kubectl import Kubectl
from cluster.release import NAME, Release
from cluster.test_machine import container, pod, spec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

POOLS = [Pool(name="a10", gpu="NVIDIA-A10", tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},)), Pool(name="cpu")]
WAITS = ("read", "/dev/ptmx")
"""What a worker does that goes on until it is ended."""
TRAINER = "atelier.dev/service=trainer"


class Cluster(Trainer):
    """A trainer whose workers run in a namespace."""

    def __init__(self, folder: Path, kubectl: Kubectl, manifest: dict[str, Any]) -> None:
        super().__init__(folder, lambda: core()[0], namespace=kubectl.namespace, manifest=manifest, pools=POOLS)
        self.kubectl = kubectl

    def trouble(self) -> str:
        return f"{self.kubectl('get', 'pods,jobs,events', '-o', 'wide', ok=False)}\n{super().trouble()}"

    async def eventually(self, holds: Callable[[], Any]) -> None:
        """As `until`, for what kubectl is asked for."""
        await self.until(holds, seconds=90)

    def jobs(self) -> list[str]:
        return [one["metadata"]["name"] for one in self.kubectl.get("jobs", "-l", TRAINER)["items"]]

    def pods(self, phase: str = "") -> list[dict[str, Any]]:
        found = self.kubectl.get("pods", "-l", TRAINER)["items"]
        return [one for one in found if phase in ("", one["status"]["phase"]) and "deletionTimestamp" not in one["metadata"]]

    async def running(self) -> str:
        """The one pod that runs."""
        await self.eventually(lambda: self.pods("Running"))
        (one,) = self.pods("Running")
        return str(one["metadata"]["name"])


@pytest.fixture
def make(kubectl: Kubectl, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes the trainer; its workers run the probe with these words."""
    release = Release(kubectl, tmp_path)
    rendered = [one for one in yaml.safe_load_all(release.helm("template", NAME, str(release.chart), "--no-hooks")) if one]
    (owner,) = (one for one in rendered if one["kind"] == "ConfigMap" and one["metadata"]["name"] == f"{NAME}-workers")
    (account,) = (one for one in rendered if one["kind"] == "ServiceAccount" and one["metadata"]["name"] == f"{NAME}-worker")
    public = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{NAME}-public"}, "data": {"ca.crt": "", "signing.pub": ""}}
    kubectl.apply(owner, account, public)
    made: list[Cluster] = []

    def build(*words: str, image: str = PROBE_IMAGE) -> Cluster:
        manifest = json.loads(owner["data"]["trainer.json"])
        worker = manifest["spec"]["template"]["spec"]["containers"][0]
        worker |= {"image": image, "imagePullPolicy": "Never", "command": ["/probe", *words]}
        worker["resources"] = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}}
        manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 2
        made.append(Cluster(tmp_path, kubectl, copy.deepcopy(manifest)))
        return made[-1]

    yield build
    for one in made:
        one.database.close()


async def test_a_job_goes_to_a_node_of_its_gpu_and_waits_while_all_are_taken(make: Callable[..., Cluster]) -> None:
    trainer = make(*WAITS)
    taken = spec(containers=[container("serve", ":8080", resources={"limits": {"nvidia.com/gpu": "1"}})])
    taken |= {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A10"}, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}
    trainer.kubectl.apply(pod("taken-0", taken), pod("taken-1", taken))
    trainer.kubectl.wait("condition=Ready", "pod/taken-0", "pod/taken-1")
    name = trainer.submit("a10")
    async with trainer.control():
        await trainer.eventually(lambda: "Insufficient nvidia.com/gpu" in trainer.ledger.get(name).waits_for)
        assert trainer.ledger.get(name).state is State.PENDING and not any(one["spec"].get("nodeName") for one in trainer.pods())
        (node,) = trainer.kubectl("get", "pod", "taken-0", "-o", "jsonpath={.spec.nodeName}").split()
        trainer.kubectl("delete", "pod", "taken-0")
        await trainer.eventually(lambda: any(one["spec"].get("nodeName") for one in trainer.pods()))
        assert {one["spec"]["nodeName"] for one in trainer.pods() if "nodeName" in one["spec"]} == {node}
    sentences = [sentence for sentence in trainer.said(name) if "Insufficient nvidia.com/gpu" in sentence]
    assert sentences and len(sentences) == len(set(sentences))


async def test_the_next_control_process_adopts_a_worker_and_a_cancelled_one_leaves_nothing(make: Callable[..., Cluster]) -> None:
    trainer = make(*WAITS)
    name = trainer.submit("cpu")
    async with trainer.control():
        worker = await trainer.running()
        trainer.ledger.claim(name)
    async with trainer.control():
        await asyncio.sleep(3)
        assert [one["metadata"]["name"] for one in trainer.pods("Running")] == [worker]
        assert trainer.ledger.get(name).attempt == 1 and len(trainer.jobs()) == 1
        trainer.ledger.cancel(name)  # it does not say so itself, and is ended
        await trainer.until_state(name, State.CANCELLED)
        await trainer.eventually(lambda: not trainer.jobs() and not trainer.pods())


async def test_an_evicted_pod_is_made_anew_under_the_same_job(make: Callable[..., Cluster], tmp_path: Path) -> None:
    trainer = make(*WAITS)
    name = trainer.submit("cpu")
    async with trainer.control():
        evicted = await trainer.running()
        trainer.ledger.claim(name)
        made = trainer.jobs()
        Release(trainer.kubectl, tmp_path).evict(evicted)
        await trainer.eventually(lambda: [one for one in trainer.pods("Running") if one["metadata"]["name"] != evicted])
        await trainer.until(lambda: any("EvictionByEvictionAPI" in sentence for sentence in trainer.said(name)))
        assert trainer.jobs() == made and trainer.ledger.get(name).state is State.RUNNING
        trainer.ledger.cancel(name)
        await trainer.until_state(name, State.CANCELLED)


@pytest.mark.parametrize(("kind", "reason"), [("pod", "the worker's pod is gone"), ("job", "the worker's Kubernetes Job was deleted")])
async def test_what_somebody_deletes_is_made_again_and_is_no_failure(make: Callable[..., Cluster], kind: str, reason: str) -> None:
    trainer = make(*WAITS)
    name = trainer.submit("cpu")
    async with trainer.control():
        worker = await trainer.running()
        trainer.ledger.claim(name)
        made = trainer.jobs()
        trainer.kubectl("delete", kind, worker if kind == "pod" else made[0])
        await trainer.eventually(lambda: [one for one in trainer.pods("Running") if one["metadata"]["name"] != worker])
        assert trainer.said(name)[-1].startswith(reason)
        assert trainer.ledger.get(name).failures == 0 and set(trainer.jobs()) - set(made)
        trainer.ledger.cancel(name)
        await trainer.eventually(lambda: not trainer.pods())


async def test_a_worker_that_fails_leaves_its_last_lines_and_its_exit_code(make: Callable[..., Cluster]) -> None:
    trainer = make("read", "/nothing")
    name = trainer.submit("cpu")
    async with trainer.control():
        await trainer.eventually(lambda: trainer.ledger.get(name).state is State.FAILED)
    said = trainer.said(name)
    assert said.count("open /nothing: no such file or directory") == said.count("the worker ended with exit code 1 and no word") == 3


async def test_a_worker_that_needs_more_memory_is_told_so(make: Callable[..., Cluster]) -> None:
    trainer = make("read", "/dev/zero")
    name = trainer.submit("cpu")
    async with trainer.control():
        await trainer.eventually(lambda: any("more memory than its limit (64Mi)" in sentence for sentence in trainer.said(name)))


async def test_an_image_that_is_not_there_is_named(make: Callable[..., Cluster]) -> None:
    trainer = make(*WAITS, image="localhost/none:1")
    name = trainer.submit("cpu")
    async with trainer.control():
        await trainer.eventually(lambda: "localhost/none:1" in trainer.ledger.get(name).waits_for)
        trainer.ledger.cancel(name)
        await trainer.eventually(lambda: not trainer.jobs() and not trainer.pods())


async def test_a_quota_that_is_used_up_is_named(make: Callable[..., Cluster]) -> None:
    trainer = make(*WAITS)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    trainer.kubectl.apply(quota)
    await trainer.eventually(lambda: trainer.kubectl.get("resourcequota", "few").get("status", {}).get("hard"))
    name = trainer.submit("cpu")
    async with trainer.control():
        await trainer.eventually(lambda: "exceeded quota: few" in trainer.ledger.get(name).waits_for)
        await asyncio.sleep(15)  # the Job controller tries again, each time with another name of the pod
    assert len([sentence for sentence in trainer.said(name) if "exceeded quota" in sentence]) == 1
