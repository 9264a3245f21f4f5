"""Through a real server and a real ledger; no worker runs."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import File, Kind, Manifest
from atelier.artifacts.store import Store
from atelier.compiler.servicer import CompilerServicer
from atelier.errors import AtelierError, Status
from atelier.jobs.ledger import JobLedger
from atelier.jobs.submission import Submission
from atelier.ledger import Database
from atelier.migrations import migrate
from atelier.rpc import auth, channel, server, status
from atelier.v1 import compiler_pb2 as pb
from atelier.v1 import compiler_pb2_grpc

LOCAL = {"local": "cpu"}


def catalog_with(folder: Path, kinds: Mapping[str, Kind]) -> Catalog:
    database = Database(f"sqlite:///{folder}/ledger.db")
    migrate(database)
    catalog = Catalog(store=Store.open("memory://"), database=database)
    for tag, kind in kinds.items():
        path = folder / tag
        path.write_text(tag)
        file = File(path="model.txt", size=path.stat().st_size, sha256=hashlib.sha256(tag.encode()).hexdigest())
        catalog.store.put_blob(path, file)
        catalog.commit(Manifest(kind=kind, files=(file,)), tags=[tag])
    return catalog


@pytest.fixture
def compile_(tmp_path: Path) -> Callable[..., Any]:
    catalog = catalog_with(tmp_path, {"model": Kind.MODEL, "file": Kind.SINGLE_FILE, "lora": Kind.LORA})
    submission = Submission(ledger=JobLedger(Database(f"sqlite:///{tmp_path}/ledger.db")), service="compiler", wake=lambda: None)

    async def call(request: pb.CompileRequest, pools: Mapping[str, str]) -> Any:
        service = server.Service(
            descriptor=pb.DESCRIPTOR.services_by_name["Compiler"],
            add=compiler_pb2_grpc.add_CompilerServicer_to_server,
            servicer=CompilerServicer(submission=submission, catalog=catalog, pools=pools),
        )
        async with server.serving("127.0.0.1:0", [service], authorize=auth.allow_all, grace_seconds=1) as bound:
            with channel.channel(f"127.0.0.1:{bound.port}", token="") as plain:
                return await asyncio.to_thread(compiler_pb2_grpc.CompilerStub(plain).Compile, request)

    def compile_(pools: Mapping[str, str] = LOCAL, **fields: Any) -> Any:
        return asyncio.run(call(pb.CompileRequest(**{"model": "model", **fields}), pools))

    return compile_


def refused(call: Callable[[], Any]) -> AtelierError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return status.from_call(caught.value)


def fields(error: AtelierError) -> set[str]:
    return {violation.field for violation in error.violations}


def test_a_request_becomes_a_job_with_defaults_filled_in_and_names_resolved(compile_: Callable[..., Any]) -> None:
    job = compile_(model="file", force=True)
    spec = pb.CompileRequest()
    assert job.spec.Unpack(spec)
    assert job.name.startswith("jobs/")
    assert spec.model.startswith("artifacts/")
    assert spec.pool == "pools/local"
    assert spec.output == pb.COMPILE_OUTPUT_ENGINE


def test_validate_only_shows_the_plan_and_starts_nothing(compile_: Callable[..., Any]) -> None:
    job = compile_(validate_only=True, backend=pb.BACKEND_OPENVINO, precision=pb.ENGINE_PRECISION_FP32)
    assert job.name == ""
    assert "with openvino in fp32" in job.plan[0]
    assert job.plan[1] == "pictures of the model's own size, the usual batches for such a size"
    wide = compile_(validate_only=True, profile=pb.ShapeProfile(width=512, batch_sizes=[2, 4]))
    assert wide.plan[1] == "pictures of 512 pixels x the model's own height, batches 2, 4"


def test_the_same_request_is_the_same_job(compile_: Callable[..., Any]) -> None:
    assert compile_(request_id="one").name == compile_(request_id="one").name
    error = refused(lambda: compile_(request_id="one", force=True))
    assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


def test_all_bad_fields_are_named_at_once(compile_: Callable[..., Any]) -> None:
    error = refused(
        lambda: compile_(
            model="nothing",
            pool="pools/moon",
            precision=pb.ENGINE_PRECISION_FP16,
            backend=pb.BACKEND_TENSORRT,
            profile=pb.ShapeProfile(width=100, height=5000, batch_sizes=[4, 2]),
        )
    )
    assert error.status is Status.INVALID_ARGUMENT
    assert fields(error) == {"model", "pool", "precision", "backend", "profile.width", "profile.height", "profile.batch_sizes"}


def test_a_lora_is_not_compiled(compile_: Callable[..., Any]) -> None:
    error = refused(lambda: compile_(model="lora"))
    assert "lora is a LORA; expected MODEL or SINGLE_FILE" in error.message


def test_an_unknown_backend_is_refused_with_those_there_are(compile_: Callable[..., Any]) -> None:
    error = refused(lambda: compile_(backend=99))
    assert error.status is Status.INVALID_ARGUMENT
    assert "BACKEND_OPENVINO" in error.message


def test_the_pool_must_be_named_where_there_are_two(compile_: Callable[..., Any]) -> None:
    pools = {"a10": "NVIDIA-A10", "cpu": "cpu"}
    error = refused(lambda: compile_(pools))
    assert fields(error) == {"pool"}
    assert "pools/a10, pools/cpu" in error.message


def test_what_a_pool_cannot_run_is_refused(compile_: Callable[..., Any]) -> None:
    pools = {"a10": "NVIDIA-A10", "cpu": "cpu"}
    compile_(pools, pool="pools/a10", backend=pb.BACKEND_TENSORRT, precision=pb.ENGINE_PRECISION_FP16, validate_only=True)
    assert fields(refused(lambda: compile_(pools, pool="pools/a10", backend=pb.BACKEND_OPENVINO))) == {"backend"}
    assert fields(refused(lambda: compile_(pools, pool="pools/cpu", precision=pb.ENGINE_PRECISION_FP16))) == {"precision"}


def test_the_servicer_imports_no_torch() -> None:
    script = "import sys, atelier.compiler.servicer; print(sorted({'torch', 'openvino', 'numpy', 'ray'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
