"""Ports that are encrypted: who gets in, whose certificate is shown, and what a probe may ask in the clear."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from authority import Authority
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atelier.artifacts.store import Store
from atelier.client import Client
from atelier.errors import AtelierError, Status
from atelier.jobs.ledger import JobLedger
from atelier.jobs.servicer import JobsServicer
from atelier.ledger import Database
from atelier.migrations import migrate
from atelier.rpc import auth, server
from atelier.rpc.tls import Tls
from atelier.v1 import job_pb2, job_pb2_grpc


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def service(tmp_path: Path) -> server.Service:
    database = Database(f"sqlite:///{tmp_path}/ledger.db")
    migrate(database)
    servicer = JobsServicer(ledger=JobLedger(database), store=Store.open("memory://"))
    descriptor = job_pb2.DESCRIPTOR.services_by_name["Jobs"]
    return server.Service(descriptor=descriptor, add=job_pb2_grpc.add_JobsServicer_to_server, servicer=servicer)


def of(authority: Authority, *, mutual: bool = False) -> Tls:
    pair = authority.sign("server")
    return Tls(certificate=pair.certificate, key=pair.key, ca=authority.file, client_ca=authority.file if mutual else None)


async def with_client(call: Callable[[Client], Any], target: str, tls: Tls | None = None) -> Any:
    def work() -> Any:
        with Client(target, "secret", tls=tls) as client:
            return call(client)

    return await asyncio.to_thread(work)


def jobs(client: Client) -> Any:
    return list(client.jobs.list())


def shown(port: int, authority: Authority) -> str:
    """Common name of the certificate that the port shows now."""
    context = ssl.create_default_context(cafile=str(authority.file))
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain, server_hostname="localhost") as one:
        return dict(entry[0] for entry in one.getpeercert()["subject"])["commonName"]  # type: ignore[index, misc, union-attr]


async def test_a_client_that_trusts_the_authority_gets_in(authority: Authority, service: server.Service) -> None:
    tls = of(authority)
    async with server.serving("127.0.0.1:0", [service], authorize=auth.bearer_token("secret"), tls=tls) as bound:
        assert await with_client(jobs, f"https://localhost:{bound.port}", Tls(ca=authority.file)) == []
        assert await with_client(jobs, f"127.0.0.1:{bound.port}", Tls(ca=authority.file)) == []  # who names an authority wants TLS
        for target in (f"https://localhost:{bound.port}", f"http://localhost:{bound.port}"):
            with pytest.raises(AtelierError) as caught:
                await with_client(jobs, target)
            assert caught.value.status is Status.UNAVAILABLE
        stranger = Authority(authority.file.parent / "stranger")
        with pytest.raises(AtelierError) as caught:
            await with_client(jobs, f"https://localhost:{bound.port}", Tls(ca=stranger.file))
        assert caught.value.reason == "SERVER_UNREACHABLE" and "--ca-file" in caught.value.message


async def test_mutual_tls_asks_for_a_certificate_of_the_authority(authority: Authority, service: server.Service) -> None:
    stranger = Authority(authority.file.parent / "stranger").sign("client")
    own = authority.sign("client")
    async with server.serving("127.0.0.1:0", [service], authorize=auth.allow_all, tls=of(authority, mutual=True)) as bound:
        target = f"https://localhost:{bound.port}"
        assert await with_client(jobs, target, Tls(ca=authority.file, certificate=own.certificate, key=own.key)) == []
        for pair in (None, stranger):
            shown_pair = {"certificate": pair.certificate, "key": pair.key} if pair else {}
            with pytest.raises(AtelierError) as caught:
                await with_client(jobs, target, Tls(ca=authority.file, **shown_pair))
            assert caught.value.status is Status.UNAVAILABLE


async def test_a_renewed_certificate_is_shown_without_a_restart_and_a_missing_one_changes_nothing(
    authority: Authority, service: server.Service
) -> None:
    tls = of(authority)
    async with server.serving("127.0.0.1:0", [service], authorize=auth.allow_all, tls=tls) as bound:
        assert await asyncio.to_thread(shown, bound.port, authority) == "server"
        renewed = authority.sign("renewed")
        renewed.certificate.replace(tls.certificate or "")
        renewed.key.replace(tls.key or "")
        assert await asyncio.to_thread(shown, bound.port, authority) == "renewed"
        (tls.key or Path()).unlink()
        assert await asyncio.to_thread(shown, bound.port, authority) == "renewed"


async def test_a_probe_asks_in_the_clear_for_health_and_nothing_else(authority: Authority, service: server.Service) -> None:
    async with (
        server.serving("127.0.0.1:0", [service], authorize=auth.bearer_token("secret"), tls=of(authority)) as bound,
        server.plain_health("127.0.0.1:0", bound.health) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as plain,
    ):
        health: Any = health_pb2_grpc.HealthStub(plain)
        for name in ("", "atelier.v1.Jobs"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        for method in ("/atelier.v1.Jobs/ListJobs", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await plain.unary_unary(method)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_files_that_are_not_there_are_named(authority: Authority, service: server.Service, tmp_path: Path) -> None:
    tls = Tls(certificate=tmp_path / "none.crt", key=tmp_path / "none.key")
    with pytest.raises(AtelierError, match=r"none\.key"):
        async with server.serving("127.0.0.1:0", [service], authorize=auth.allow_all, tls=tls):
            pass
    with pytest.raises(AtelierError, match=r"none\.crt"):
        Tls(ca=tmp_path / "none.crt").channel_credentials()


def test_what_a_worker_is_told_is_what_it_reads(tmp_path: Path) -> None:
    tls = Tls(certificate=tmp_path / "a", key=tmp_path / "b", ca=tmp_path / "c", client_ca=tmp_path / "d")
    assert Tls.of_environment({"PATH": "/bin", **tls.as_environment()}) == tls
    assert Tls.of_environment({"PATH": "/bin"}) is None


def test_tokens_of_a_file_change_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "RECHECK_SECONDS", 0.0)
    path = tmp_path / "tokens"
    tokens = auth.Tokens(path)
    check = auth.bearer_token(tokens)
    with pytest.raises(AtelierError, match="holds no token"):
        check("/atelier.v1.Jobs/ListJobs", {})
    path.write_text("# of the team\none\n\ntwo\n")
    for token in ("one", "two"):
        check("/atelier.v1.Jobs/ListJobs", {"authorization": f"Bearer {token}"})
    path.write_text("three\n")
    for token in ("one", "# of the team", "", "three "):
        with pytest.raises(AtelierError) as caught:
            check("/atelier.v1.Jobs/ListJobs", {"authorization": f"Bearer {token}"})
        assert caught.value.status is Status.UNAUTHENTICATED
    path.unlink()  # what was known stays
    check("/atelier.v1.Jobs/ListJobs", {"authorization": "Bearer three"})
    check("/grpc.health.v1.Health/Check", {})
