"""What workers without a store of their own are given and bring in over `Attempts`."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from authority import Authority
from installation import Installation, attempts, open_installation

from atelier.artifacts.manifest import describe_folder
from atelier.artifacts.messages import files_to_messages
from atelier.artifacts.spool import Spool
from atelier.errors import AtelierError, Status
from atelier.jobs import attempts_client
from atelier.jobs.attempts_client import AttemptsClient
from atelier.jobs.submission import Submission, Work
from atelier.rpc.tls import Tls
from atelier.v1 import attempt_pb2, trainer_pb2


def claimed(installation: Installation, *, target: str = "", tls: Tls | None = None) -> tuple[AttemptsClient, int]:
    request = trainer_pb2.TrainRequest()
    submission = Submission(ledger=installation.ledger, service="trainer", wake=lambda: None)
    job = submission.submit("Train", request, "", Work(spec=request)).name
    target = target or f"127.0.0.1:{installation.attempts_port}"
    client = AttemptsClient(target, job=job, token=installation.tokens.token(job), tls=tls)
    return client, client.claim("test").attempt


def written(client: AttemptsClient, attempt: int, folder: Path, *, step: int) -> None:
    files = describe_folder(folder)
    header = attempt_pb2.CheckpointHeader(
        job=client.job, attempt=attempt, step=step, files=files_to_messages(files), keep_full=2, keep_weights=0
    )
    client.write_checkpoint(header, {file.sha256: folder / file.path for file in files})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "a").write_bytes(b"a" * 3_000_000)
    (folder / "position.json").write_text("{}")
    return folder


async def test_an_upload_that_was_cut_off_begins_anew(tmp_path: Path, checkpoint: Path) -> None:
    installation = open_installation(tmp_path, store_url="memory://")
    async with attempts(installation, tmp_path):
        client, attempt = await asyncio.to_thread(claimed, installation)
        big = next(file for file in describe_folder(checkpoint) if file.path.endswith("a"))
        Spool(tmp_path / "spool").write(big, 0, b"a" * 1_000_000)  # as far as an earlier try came
        await asyncio.to_thread(written, client, attempt, checkpoint, step=5)
        read = lambda: client.read_checkpoint(attempt, owner="", step=0, folder=tmp_path / "out")  # noqa: E731
        assert await asyncio.to_thread(read) == 5
    assert describe_folder(tmp_path / "out") == describe_folder(checkpoint)


async def test_a_checkpoint_that_is_damaged_in_the_store_is_not_resumed_from(tmp_path: Path, checkpoint: Path) -> None:
    installation = open_installation(tmp_path, store_url="memory://")
    async with attempts(installation, tmp_path):
        client, attempt = await asyncio.to_thread(claimed, installation)
        await asyncio.to_thread(written, client, attempt, checkpoint, step=5)
        [kept] = installation.ledger.checkpoints(client.job)
        installation.catalog.store.put_object(f"{kept.prefix}/weights/a", b"b" * 3_000_000)
        with pytest.raises(AtelierError, match="checkpoint 5 is damaged") as caught:
            await asyncio.to_thread(lambda: client.read_checkpoint(attempt, owner="", step=5, folder=tmp_path / "out"))
    assert (caught.value.status, caught.value.reason) == (Status.DATA_LOSS, "DIGEST_MISMATCH")


async def test_a_token_is_good_for_its_own_job_alone(tmp_path: Path) -> None:
    installation = open_installation(tmp_path, store_url="memory://")
    async with attempts(installation, tmp_path):
        client, _ = await asyncio.to_thread(claimed, installation)
        other = AttemptsClient(f"127.0.0.1:{installation.attempts_port}", job="jobs/other", token=installation.tokens.token(client.job))
        with pytest.raises(AtelierError) as caught:
            await asyncio.to_thread(other.claim, "test")
    assert caught.value.status is Status.PERMISSION_DENIED


async def test_a_worker_that_was_told_the_authority_alone_calls_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    pair = authority.sign("server")
    installation = open_installation(tmp_path, store_url="memory://")
    told = Tls.of_environment({"ATELIER_TLS_CA": str(authority.file)})
    async with attempts(installation, tmp_path, tls=Tls(certificate=pair.certificate, key=pair.key)):
        target = f"localhost:{installation.attempts_port}"
        client, attempt = await asyncio.to_thread(lambda: claimed(installation, target=target, tls=told))
        assert not await asyncio.to_thread(client.heartbeat, attempt)


async def test_a_store_that_workers_cannot_reach_is_not_told_to_them(tmp_path: Path) -> None:
    installation = open_installation(tmp_path)
    for told in ("", "s3://bucket"):
        async with attempts(installation, tmp_path, told_store=told):
            client, _ = await asyncio.to_thread(claimed, installation)
            assert (await asyncio.to_thread(client.claim, "again")).store_url == told


class Wire:
    """Passes bytes on between a worker and its control process, until it is `cut`: then they vanish without a word, and connections that
    lost some break later."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cut = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        lost = False
        with contextlib.suppress(OSError):
            while piece := await source.read(65536):
                if self.cut:
                    lost = True
                elif lost:
                    break
                else:
                    target.write(piece)
        target.close()


async def test_a_control_process_that_is_gone_without_a_word_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_client, "HEARTBEAT_SECONDS", 0.5)
    installation = open_installation(tmp_path, store_url="memory://")
    async with attempts(installation, tmp_path):
        wire = Wire(installation.attempts_port)
        server = await asyncio.start_server(wire, "127.0.0.1", 0)
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client, attempt = await asyncio.to_thread(lambda: claimed(installation, target=target))
        wire.cut = True
        beat = asyncio.create_task(asyncio.to_thread(client.heartbeat, attempt))
        await asyncio.sleep(1.5)
        assert not beat.done()
        wire.cut = False
        assert await asyncio.wait_for(beat, 20) is False
        server.close()
