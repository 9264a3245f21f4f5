"""The chart with its default values: no GPU, operator or database, one volume; from `helm install` to pictures, and through failures."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.client.client import Client
from atelier.v1 import job_pb2, trainer_pb2
from cluster.connections import Rule, refused, rules_of, watched
from cluster.kubectl import Kubectl
from cluster.load import Told, steadily
from cluster.place import default_place
from cluster.release import KEPT, NAME, Release, until
from cluster.walk import done, octopus, picture, training, walk

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


GAP_SECONDS = 90
"""Without pictures, where one part of a kind is replaced."""
ASK = """
import sys, grpc
authority, *pair = [open(name, "rb").read() for name in sys.argv[2:]]
certificate, key = pair or (None, None)
with grpc.secure_channel(f"{sys.argv[1]}:6379", grpc.ssl_channel_credentials(authority, key, certificate)) as channel:
    try:
        # Of a client's certificate TLS 1.3 tells after the handshake: only a call shows it.
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/Nothing")(b"", timeout=10)
    except grpc.RpcError as error:
        print(error.code().name)
"""
"""Whether Ray's head takes a connection of somebody who has a certificate, or none."""


@pytest.fixture(scope="module")
def release(namespace: Kubectl, tmp_path_factory: pytest.TempPathFactory, image_values: dict[str, object]) -> Iterator[Release]:
    """Installed once for all tests of this file, and gone after them."""
    release = Release(namespace, tmp_path_factory.mktemp("release"), values=image_values)
    began = time.monotonic()
    with watched(namespace, default_place()) as release.seen:
        notes = release.install()
        assert "port-forward" in notes
        with release.client() as client:
            picture(client, "base", patience=240)
        print(f"\nhelm install to the first picture: {time.monotonic() - began:.0f} s")
        yield release


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    with release.client() as client:
        yield client


@pytest.fixture(scope="module")
def pictures(release: Release, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The octopus, uploaded."""
    with release.client() as client:
        return octopus(client, tmp_path_factory.mktemp("octopus"))


def test_pictures_become_a_picture(client: Client, release: Release, pictures: str) -> None:
    walk(client, release, pictures)


def test_the_charts_own_test_passes(release: Release) -> None:
    assert "Phase:          Succeeded" in release.helm("test", NAME, "--timeout=180s")


def test_every_service_answers_at_one_address_from_outside_and_inside(release: Release, tmp_path: Path) -> None:
    doors = Path(__file__).with_name("doors.py")
    (tmp_path / "token").write_text(release.token)
    with release.forwarded(f"service/{NAME}", 7878) as port:
        command = [sys.executable, "-", f"localhost:{port}", str(tmp_path / "token"), str(release.authority)]
        outside = subprocess.run(command, input=doors.read_text(), stdout=subprocess.PIPE, text=True, check=True).stdout
    files = ["/etc/atelier/token/token", "/etc/atelier/tls/ca.crt"]
    address = f"{NAME}.{release.kubectl.namespace}.svc.cluster.local:7878"
    command = release.kubectl.command("exec", "-i", f"deployment/{NAME}-control", "-c", "server", "--", "python", "-", address, *files)
    inside = subprocess.run(command, input=doors.read_text(), stdout=subprocess.PIPE, text=True, check=True).stdout
    for printed in (outside, inside):
        found = dict(line.split(" ", 1) for line in printed.splitlines())
        services = {"Trainer", "Converter", "Compiler", "Server", "Jobs", "Artifacts", "Images"}
        assert {f"atelier.v1.{name}" for name in services} <= set(found.pop("reflection").split(","))
        # Trainer and Converter understood their requests: what is wrong with them is named.
        assert found == {name: "OK" for name in (*services, "health")} | {"Trainer": "INVALID_ARGUMENT", "Converter": "INVALID_ARGUMENT"}


def interruptible(pictures: str, **more: object) -> trainer_pb2.TrainRequest:
    """A run that lasts long enough to be in its middle when something happens to it."""
    request = training(pictures, steps=30, checkpointing_steps=4, **more)
    request.train_batch_size = 4
    return request


@pytest.fixture(scope="module")
def undisturbed(release: Release, pictures: str) -> dict[str, str]:
    """The weights that come out where nothing happens: path -> digest."""
    with release.client() as client:
        return weights(client, done(client, release, client.train(interruptible(pictures))))


@pytest.mark.parametrize("how", ["killed", "evicted"])
def test_a_worker_that_is_lost_resumes_and_ends_bit_equal(
    client: Client, release: Release, pictures: str, undisturbed: dict[str, str], how: str
) -> None:
    job = client.train(interruptible(pictures, tags=[how]))
    until(lambda: client.jobs.get(job.name).progress.step >= 5, seconds=240, release=release)
    pod = release.kubectl("get", "pods", "-l", f"atelier.dev/job={job.name.removeprefix('jobs/')}", "-o", "name").strip()
    if how == "evicted":
        release.evict(pod.removeprefix("pod/"))
    else:
        release.kubectl("delete", "--grace-period=0", "--force", pod)
    assert weights(client, done(client, release, job)) == undisturbed
    assert client.jobs.get(job.name).attempts == 2


def weights(client: Client, made: dict[str, str]) -> dict[str, str]:
    """Digests of a LoRA's weights."""
    found = {file.path: file.sha256 for file in client.artifacts.get(made["lora"]).files if file.path.endswith(".safetensors")}
    assert found
    return found


def test_a_job_outlives_the_control_pod_and_pictures_come_again(client: Client, release: Release, pictures: str) -> None:
    with release.outside() as outside:
        picture(outside, "base", patience=150)
        job = client.train(interruptible(pictures, tags=["outlives"]))
        selector = f"atelier.dev/job={job.name.removeprefix('jobs/')}"
        until(lambda: client.jobs.get(job.name).progress.step >= 2, seconds=240, release=release)
        (before,) = release.kubectl.get("pods", "-l", selector)["items"]
        with steadily(outside, "base") as told:
            release.kubectl("rollout", "restart", f"deployment/{NAME}-control")
            release.rolled_out("control")
            picture(outside, "base", patience=180)
    report(told, "control pod replaced")
    with release.client() as again:
        assert again.jobs.wait(job.name).attempts == 1
    (after,) = release.kubectl.get("pods", "-l", selector)["items"]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def report(told: Told, what: str) -> None:
    """How long there was no picture; calls may have failed, but for one reason alone."""
    print(f"\n{what}: {told.pictures} pictures, {len(told.failures)} failed, longest gap {told.gap_seconds:.0f} s")
    assert told.pictures and told.gap_seconds < GAP_SECONDS
    assert all(failure.startswith("UNAVAILABLE") for failure in told.failures), told.failures


def test_cancel_leaves_nothing(client: Client, release: Release, pictures: str) -> None:
    job = client.train(training(pictures, steps=1000, tags=["cancelled"]))
    until(lambda: client.jobs.get(job.name).state == job_pb2.JOB_STATE_RUNNING, seconds=120, release=release)
    client.jobs.cancel(job.name)
    until(lambda: client.jobs.get(job.name).state == job_pb2.JOB_STATE_CANCELLED, seconds=60, release=release)
    selector = f"atelier.dev/job={job.name.removeprefix('jobs/')}"
    until(lambda: not release.kubectl.get("jobs,pods", "-l", selector)["items"], seconds=90, release=release)


def test_pictures_come_again_when_the_head_of_ray_was_killed(client: Client, release: Release) -> None:
    (head,) = release.pods("ray-head")
    release.kubectl("delete", "pod", head["metadata"]["name"], "--grace-period=0", "--force")
    began = time.monotonic()
    time.sleep(5)  # what still answers now may be the old
    picture(client, "base", patience=180)
    seconds = time.monotonic() - began
    print(f"\nhead killed to pictures: {seconds:.0f} s")
    assert seconds < 90


def test_every_connection_that_was_seen_is_allowed_by_a_policy_and_no_rule_is_idle(release: Release) -> None:
    policies = release.kubectl.get("networkpolicies")["items"]
    used: set[Rule] = set()
    assert release.seen.connections and refused(release.seen, policies, used) == []
    idle = {rule for rule in rules_of(policies) - used if not is_unseen(rule)}
    assert idle == set()


def is_unseen(rule: Rule) -> bool:
    """What this test cannot see: datagrams (DNS), calls from outside of pods, what lasts for less than a look (a node's word of an event,
    too), and peers of more than one node, of which the pool has none."""
    short = rule.policy in (f"{NAME}-credentials", f"{NAME}-client") or rule.peer == "worker/converter" or rule.ports == "7890"
    short |= rule.ports == "8265" and rule.peer in ("ray-node", "ray-head")
    two_nodes = rule.policy == f"{NAME}-ray-node" and rule.peer == "ray-node"
    return rule.ports == "53,53" or rule.peer == "anyone" or short or two_nodes


def test_all_pods_of_ray_are_replaced_and_speak_by_certificates_then(release: Release) -> None:
    with release.outside() as outside:
        picture(outside, "base", patience=150)
        with steadily(outside, "base") as told:
            release.install(ray={"tls": True})
            release.rolled_out("ray-head", "pool-cpu")
            until(lambda: bool(release.replicas()["cpu"]), seconds=120, release=release)
            picture(outside, "base", patience=180)
    report(told, "Ray's pods replaced")
    (head,), (node,) = release.pods("ray-head"), release.nodes("cpu")
    place, words = node["metadata"]["name"], [head["status"]["podIP"], "/etc/atelier/ray-tls/ca.crt"]
    answers = [
        release.kubectl("exec", place, "-c", "ray-node", "--", "python", "-c", ASK, *words, *pair).strip()
        for pair in ([], ["/etc/atelier/ray-tls/tls.crt", "/etc/atelier/ray-tls/tls.key"])
    ]
    assert answers[0] == "UNAVAILABLE" and answers[1] in ("UNIMPLEMENTED", "UNAUTHENTICATED"), answers


def test_uninstall_leaves_what_the_notes_name_and_nothing_else(release: Release, tmp_path: Path) -> None:
    release.uninstall()
    until(lambda: not release.kubectl("get", "pods", "-o", "name"), seconds=120, release=release)
    assert release.left() == KEPT | {f"secret/{NAME}-ray-ca"}
