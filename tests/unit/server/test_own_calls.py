"""Jobs that the server asks for itself: found again, and asked for anew where there is reason to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import File, Kind, Manifest, hash_file
from atelier.artifacts.store import Store
from atelier.client.address import Address
from atelier.errors import AtelierError, Status, failed_precondition
from atelier.jobs.events import error_bytes
from atelier.jobs.job import Output, State
from atelier.jobs.ledger import JobLedger
from atelier.jobs.submission import Submission, Work
from atelier.ledger import Database, now
from atelier.migrations import migrate
from atelier.rpc import auth, server
from atelier.server.own_calls import FIRST_PAUSE, LAST_PAUSE, OwnCalls
from atelier.v1 import compiler_pb2, compiler_pb2_grpc

MODEL = "a" * 64


class FakeCompiler(compiler_pb2_grpc.CompilerServicer):
    """Accepts jobs as the real one does, and compiles nothing."""

    def __init__(self, ledger: JobLedger) -> None:
        self._submission = Submission(ledger=ledger, service="compiler", wake=lambda: None)

    async def Compile(self, request: compiler_pb2.CompileRequest, context: Any) -> Any:
        return self._submission.submit("Compile", request, request.request_id, Work(spec=request))


class Installation:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database(f"sqlite:///{folder / 'ledger.db'}")
        migrate(self.database)
        self.ledger = JobLedger(self.database)
        self.catalog = Catalog(store=Store.open("memory://"), database=self.database)
        self.time: datetime = now()
        self.target = ""

    def calls(self) -> OwnCalls:
        """Those of a process that has just begun."""
        return OwnCalls(Address(self.target), ledger=self.ledger, catalog=self.catalog, clock=lambda: self.time)

    def jobs(self) -> list[str]:
        """Names, oldest first."""
        found, _ = self.ledger.page(state=None, page_size=50, page_token="")
        return [job.name for job in reversed(found)]

    def end(self, *, state: State = State.SUCCEEDED, error: AtelierError | None = None, digest: str = "") -> None:
        """Ends the newest job."""
        name = self.jobs()[-1]
        attempt = self.ledger.claim(name).attempt
        outputs = [Output(role="engine", digest=digest)] if digest else []
        self.ledger.complete(name, attempt, state=state, outputs=outputs, error=error_bytes(error) if error else b"")

    def engine(self, mark: str) -> str:
        path = self.folder / mark
        path.write_text(mark)
        file = File(path="engine", size=len(mark), sha256=hash_file(path))
        self.catalog.store.put_blob(path, file)
        return self.catalog.commit(Manifest(kind=Kind.ENGINE, files=(file,))).digest


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    made = Installation(tmp_path)
    service = server.Service(
        descriptor=compiler_pb2.DESCRIPTOR.services_by_name["Compiler"],
        add=compiler_pb2_grpc.add_CompilerServicer_to_server,
        servicer=FakeCompiler(made.ledger),
    )
    async with server.serving("127.0.0.1:0", [service], authorize=auth.allow_all, grace_seconds=0.2) as bound:
        made.target = f"127.0.0.1:{bound.port}"
        yield made
    made.database.close()


@pytest.fixture
async def calls(installation: Installation) -> AsyncIterator[OwnCalls]:
    made = installation.calls()
    yield made
    await made.close()


async def build(calls: OwnCalls, *, model: str = MODEL, kind: str = "k1") -> str:
    return await calls.build(model, "fast", kind)


async def failure(calls: OwnCalls) -> AtelierError:
    with pytest.raises(AtelierError) as caught:
        await build(calls)
    return caught.value


async def test_an_engine_is_one_job_for_each_kind_of_machine_whatever_process_asks(installation: Installation, calls: OwnCalls) -> None:
    assert [await build(calls), await build(calls), await build(calls, kind="k2")] == ["", "", ""]
    other = installation.calls()
    assert await build(other) == ""
    await other.close()
    assert len(installation.jobs()) == 2


async def test_an_engine_that_was_deleted_is_built_anew(installation: Installation, calls: OwnCalls) -> None:
    await build(calls)
    first = installation.engine("first")
    installation.end(digest=first)
    assert await build(calls) == first
    installation.catalog.delete(first)
    assert await build(calls) == ""
    second = installation.engine("second")
    installation.end(digest=second)
    other = installation.calls()
    assert [await build(calls), await build(other)] == [second, second]
    await other.close()
    assert len(installation.jobs()) == 2


async def test_what_failed_is_tried_again_after_a_pause_that_grows(installation: Installation, calls: OwnCalls) -> None:
    await build(calls)
    for turn in range(3):
        installation.end(state=State.FAILED, error=AtelierError(Status.INTERNAL, "WORKER_LOST", "the worker was lost"))
        assert "the worker was lost" in (await failure(calls)).message
        installation.time = now() + FIRST_PAUSE * 2**turn - timedelta(minutes=1)
        await failure(calls)
        assert len(installation.jobs()) == turn + 1
        installation.time = now() + FIRST_PAUSE * 2**turn
        assert await build(calls) == ""
        assert len(installation.jobs()) == turn + 2


async def test_what_would_fail_again_is_tried_again_after_a_day_and_at_once_where_its_job_is_deleted(
    installation: Installation, calls: OwnCalls
) -> None:
    await build(calls)
    installation.end(state=State.FAILED, error=failed_precondition("PARITY_FAILED", "bf16 does not agree"))
    installation.time = now() + LAST_PAUSE - timedelta(minutes=1)
    assert (await failure(calls)).reason == "PARITY_FAILED"
    installation.time = now() + LAST_PAUSE
    assert await build(calls) == ""
    installation.end(state=State.FAILED, error=failed_precondition("PARITY_FAILED", "bf16 does not agree"))
    await failure(calls)
    installation.ledger.delete(installation.jobs()[-1])
    assert await build(calls) == ""


async def test_what_was_cancelled_stays_so_until_its_job_is_deleted(installation: Installation, calls: OwnCalls) -> None:
    await build(calls)
    installation.ledger.cancel(installation.jobs()[-1])
    installation.time = now() + 3 * LAST_PAUSE
    assert (await failure(calls)).reason == "CANCELLED"
    installation.ledger.delete(installation.jobs()[-1])
    assert await build(calls) == ""
