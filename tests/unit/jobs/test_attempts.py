"""What workers without a store of their own are given and bring in over `Attempts`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from installation import Installation, attempts, open_installation

from atelier.artifacts.manifest import describe_folder
from atelier.artifacts.messages import files_to_messages
from atelier.artifacts.spool import Spool
from atelier.errors import AtelierError, Status
from atelier.jobs.attempts_client import AttemptsClient
from atelier.jobs.submission import Submission, Work
from atelier.v1 import attempt_pb2, trainer_pb2


def claimed(installation: Installation) -> tuple[AttemptsClient, int]:
    request = trainer_pb2.TrainRequest()
    submission = Submission(ledger=installation.ledger, service="trainer", wake=lambda: None)
    job = submission.submit("Train", request, "", Work(spec=request)).name
    client = AttemptsClient(f"127.0.0.1:{installation.attempts_port}", job=job, token=installation.tokens.token(job))
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
