"""Nodes that follow replicas on a real Ray, and a Ray's head that is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, until

from atelier.artifacts.servicer import ArtifactsServicer
from atelier.client.address import Address
from atelier.client.client import Client
from atelier.errors import AtelierError
from atelier.parts import Parts, opened
from atelier.pools import Pool
from atelier.rpc import auth, server
from atelier.rpc.server import Service
from atelier.server.installation import RayElsewhere, Serving, ServingSettings
from atelier.server.replica_settings import ReplicaSettings
from atelier.settings import read
from atelier.v1 import artifact_pb2, artifact_pb2_grpc, image_pb2, server_pb2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

POOL = Pool(
    name="cpu", min_replicas=0, max_replicas=2, num_cpus=1, target_ongoing_requests=1, upscale_delay_seconds=2, downscale_delay_seconds=5,
    downscale_to_zero_delay_seconds=5, deployment="pool-cpu",
)  # fmt: skip


class Callers:
    """Make pictures one after the other, each in a thread; nothing repeats a call for them."""

    def __init__(self, target: str, token: str, count: int) -> None:
        self.pictures, self.failures, self.gap = 0, list[str](), 0.0
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(target, token)) for _ in range(count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _call(self, target: str, token: str) -> None:
        with Client(target, token) as client:
            last = time.monotonic()
            while not self._stopped.is_set():
                try:
                    picture(client, steps=10)
                    self.pictures += 1
                    self.gap, last = max(self.gap, time.monotonic() - last), time.monotonic()
                except AtelierError as error:
                    self.failures.append(f"{error.status} {error}")
                    time.sleep(0.5)


def picture(client: Client, *, steps: int = 2) -> image_pb2.GeneratedImage:
    """Without another try of the client's."""
    request = image_pb2.GenerateRequest(prompt="a fox", deployment="base", steps=steps, width=64, height=64, seed=1)
    answers = client._images.Generate(request, timeout=120)
    try:
        return list(answers)[-1].image
    except Exception as error:
        raise client._calls.error(error) from None  # type: ignore[arg-type]


@contextmanager
def installation(folder: Path, ray: Loopback) -> Iterator[Client]:
    """The server alone, before a Ray elsewhere."""
    folder.mkdir()
    (folder / "ray-token").write_text(ray.token)
    parts = opened(read(data=folder, listen="127.0.0.1:0"), ["server"], gpu="cpu")
    elsewhere = RayElsewhere(
        dashboard=f"http://127.0.0.1:{ray.dashboard}", token_file=folder / "ray-token", serve_target="", grpc_port=ray.grpc_port,
        http_port=ray.http_port, replica_settings=str(folder / "replica.json"),
    )  # fmt: skip
    ready, done, target = threading.Event(), asyncio.Event(), list[str]()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        settings = ServingSettings(
            data=folder, pools=[POOL], internal_token=parts.internal_token, internal_token_file=parts.internal_token_file,
            public_key=parts.public_key, store_url="", replica_threads=1, elsewhere=elsewhere, nodes=ray, proxies=ray.proxies,
        )  # fmt: skip
        serving = Serving(settings, catalog=parts.catalog, database=parts.database, ledger=parts.ledger)
        inner = [artifacts(parts), *serving.internal]
        async with (
            server.serving("127.0.0.1:0", inner, authorize=auth.bearer_token(parts.internal_token), grace_seconds=2) as internal,
            server.serving("127.0.0.1:0", serving.public, authorize=auth.bearer_token(parts.tokens), grace_seconds=2) as public,
        ):
            ReplicaSettings(
                pool="cpu", gpu="cpu", internal_target=f"127.0.0.1:{internal.port}", internal_token_file=str(parts.internal_token_file),
                public_key=str(parts.public_key), cache=str(folder / "cache"), log=str(folder / "replica.txt"), threads=1,
            ).write(folder / "replica.json")  # fmt: skip
            target.append(f"127.0.0.1:{public.port}")
            async with serving.started(internal_target="", own=Address(target[0], parts.tokens.all[0])):
                ready.set()
                await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(60)
    try:
        with Client(target[0], parts.tokens.all[0]) as client:
            client.deployments.create("base", server_pb2.Deployment(model="base", compile=False))
            yield client
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(60)
        parts.database.close()


def artifacts(parts: Parts) -> Service:
    servicer: Any = ArtifactsServicer(catalog=parts.catalog, spool=parts.spool)
    descriptor = artifact_pb2.DESCRIPTOR.services_by_name["Artifacts"]
    return Service(descriptor=descriptor, add=artifact_pb2_grpc.add_ArtifactsServicer_to_server, servicer=servicer)


def test_a_pool_goes_from_zero_to_two_and_back_without_a_failed_call_and_survives_the_loss_of_its_head(tmp_path: Path) -> None:
    ray = Loopback(tmp_path, pool="cpu")
    with ExitStack() as stack:
        stack.enter_context(ray.started())
        client = stack.enter_context(installation(tmp_path / "data", ray))
        token = (tmp_path / "data" / "keys" / "token").read_text()

        def nodes() -> int:
            return len(ray.of("cpu"))

        def pool() -> server_pb2.Pool:
            return client.deployments.pools()[0]

        built = until(lambda: client.deployments.get("base").state == server_pb2.DEPLOYMENT_STATE_READY, seconds=120)
        until(lambda: nodes() == 0, seconds=60)
        assert "a call starts one" in pool().message and pool().target_replicas == 0

        began = time.monotonic()
        assert picture(client).png.startswith(b"\x89PNG")
        first = time.monotonic() - began
        assert nodes()

        with Callers(client._calls.target, token, 4) as callers:
            grown = until(lambda: sum(node.ready for node in pool().nodes) == 2, seconds=120)
            time.sleep(3)
        assert callers.pictures and not callers.failures

        with Callers(client._calls.target, token, 1) as calm:
            shrunk = until(lambda: nodes() == 1, seconds=180)
            time.sleep(3)
        assert calm.pictures and not calm.failures
        emptied = until(lambda: nodes() == 0, seconds=180)

        picture(client)
        ray.lose_head()
        told = until(lambda: "Ray does not answer" in pool().message, seconds=30)
        with Callers(client._calls.target, token, 1) as through:
            again = until(lambda: "Ray" not in pool().message and any(node.ready for node in pool().nodes), seconds=180)
            before = through.pictures
            until(lambda: through.pictures > before + 5, seconds=60)
        assert all(failure.startswith("UNAVAILABLE") for failure in through.failures), through.failures
        print(f"\nbuilt after {built:.0f} s; 0 -> 1: picture after {first:.0f} s; 1 -> 2 in {grown:.0f} s, back in {shrunk:.0f} s")
        print(f"1 -> 0 in {emptied:.0f} s; {callers.pictures + calm.pictures} pictures")
        print(f"head lost: told after {told:.0f} s, a replica anew after {again:.0f} s, at most {through.gap:.0f} s without a picture")
