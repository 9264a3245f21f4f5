"""How long there are no pictures while parts are replaced of which there is one: the control pod of the default profile, all of Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from atelier.client.client import Client
from cluster.kubectl import Kubectl
from cluster.load import Told, steadily
from cluster.release import Release, until
from cluster.walk import picture

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

GAP_SECONDS = 90
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
def release(namespace: Kubectl, tmp_path_factory: pytest.TempPathFactory, image_values: dict[str, Any]) -> Iterator[Release]:
    """Installed once for all tests of this file."""
    release = Release(namespace, tmp_path_factory.mktemp("release"), values=image_values)
    release.install()
    yield release
    release.uninstall()


@pytest.fixture
def outside(release: Release) -> Iterator[Client]:
    """A client that stays while pods go."""
    with release.outside() as client:
        picture(client, "base", patience=240)
        yield client


def again(client: Client, told: Told, what: str) -> None:
    """Waits for a picture, and says how long there was none."""
    picture(client, "base", patience=180)
    print(f"\n{what}: {told.pictures} pictures, {len(told.failures)} failed, longest gap {told.gap_seconds:.0f} s")
    assert all(failure.startswith("UNAVAILABLE") for failure in told.failures), told.failures
    assert told.gap_seconds < GAP_SECONDS


def test_the_control_pod_is_replaced(release: Release, outside: Client) -> None:
    with steadily(outside, "base") as told:
        time.sleep(5)
        release.install(control={"podAnnotations": {"changed": str(time.time())}})
        release.rolled_out("control")
        picture(outside, "base", patience=180)
        time.sleep(5)
    again(outside, told, "control pod")


def test_all_pods_of_ray_are_replaced_and_speak_by_certificates_then(release: Release, outside: Client) -> None:
    with steadily(outside, "base") as told:
        time.sleep(5)
        release.install(ray={"tls": True})
        release.rolled_out("ray-head", "pool-cpu")
        until(lambda: bool(release.replicas()["cpu"]), seconds=120, release=release)
        picture(outside, "base", patience=180)
        time.sleep(5)
    again(outside, told, "Ray's pods")
    (head,), (node,) = release.pods("ray-head"), release.nodes("cpu")
    place, words = node["metadata"]["name"], [head["status"]["podIP"], "/etc/atelier/ray-tls/ca.crt"]
    answers = [
        release.kubectl("exec", place, "-c", "ray-node", "--", "python", "-c", ASK, *words, *pair).strip()
        for pair in ([], ["/etc/atelier/ray-tls/tls.crt", "/etc/atelier/ray-tls/tls.key"])
    ]
    assert answers[0] == "UNAVAILABLE" and answers[1] in ("UNIMPLEMENTED", "UNAUTHENTICATED"), answers
