"""How Atelier is started: everything in one process (`up`), inside a command (`inside`), or one service as its own process (`serve`)."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from atelier import telemetry, tracing
from atelier.client.address import Address
from atelier.errors import AtelierError, failed_precondition
from atelier.rpc.auth import Tokens
from atelier.rpc.tls import Tls
from atelier.settings import SERVICES, Settings, read

RUN_FILE = "run.json"
"""In the data folder while `atelier up` runs: its target and process id."""
ALIVE_SECONDS = 5.0
"""So long may a busy `atelier up` take to let a client in."""


def running(data: Path) -> Address | None:
    """The running `atelier up` of a data folder, if there is one."""
    try:
        content = json.loads((data / RUN_FILE).read_text())
        os.kill(content["pid"], 0)
        address = Address(content["target"], Tokens(Path(content["token_file"])).all[0], Tls.of_environment(content["tls"]))
        # After a kill the process id may be another's.
        host, _, port = address.place.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ALIVE_SECONDS):
            return address
    except (OSError, ValueError, KeyError, TypeError, AtelierError):
        return None


def up(data: Path, *, listen: str = "", insecure: bool = False, on_ready: Callable[[Address], None] = lambda address: None) -> None:
    """Runs all services until SIGINT or SIGTERM. Raises FAILED_PRECONDITION when the folder is in use, OSError when the port is."""
    given = {"listen": listen, "insecure": insecure}
    settings = read(data=data, **{name: value for name, value in given.items() if value})
    _run(settings, SERVICES, on_ready=on_ready, announce=True)


def serve(service: str, *, on_ready: Callable[[Address], None] = lambda address: None) -> None:
    """Runs one service until SIGINT or SIGTERM, with settings from the environment."""
    _run(read(), [service], on_ready=on_ready, announce=False)


def migrate() -> str:
    """Brings the ledger of the environment's settings to this version's tables; gives its revision."""
    from atelier.ledger import Database
    from atelier.migrations import migrate

    settings = read()
    with _logged(settings, "migrate"), closing(Database(settings.ledger_url)) as database:
        return migrate(database)


@contextmanager
def inside(data: Path, *, serving: bool = False) -> Iterator[Address]:
    """All services inside this process for as long as the block lasts, Ray only when `serving`; workers then write a checkpoint and stop.

    Raises FAILED_PRECONDITION when another process has the folder.
    """
    # Nobody but the user of the command can ask these services for anything: --allow-download is word enough.
    settings = read(data=data, listen="127.0.0.1:0", health_listen=None, serving=serving, allow_download=True, drain_seconds=0)
    ready: list[Address] = []
    began, stop = threading.Event(), threading.Event()
    failure: list[BaseException] = []

    def tell(address: Address) -> None:
        ready.append(address)
        began.set()

    def work() -> None:
        try:
            asyncio.run(_serve_until(settings, SERVICES, _await_thread(stop), tell))
        except BaseException as error:
            failure.append(error)
        finally:
            began.set()

    with _logged(settings, "command"), _locked(settings.data, SERVICES):
        thread = threading.Thread(target=work, name="services")
        thread.start()
        try:
            began.wait()
            if failure:
                raise failure[0]
            yield ready[0]
        finally:
            stop.set()
            thread.join()


def _run(settings: Settings, services: Sequence[str], *, on_ready: Callable[[Address], None], announce: bool) -> None:
    name = "up" if announce else services[0]
    with _logged(settings, "atelier" if announce else name), _locked(settings.data, services), _traced(name):
        run_file = settings.data / RUN_FILE

        def ready(address: Address) -> None:
            if announce:
                run_file.write_text(json.dumps(_as_found(settings, address)))
            on_ready(address)

        try:
            asyncio.run(_serve_until_signal(settings, services, ready))
        finally:
            if announce:
                run_file.unlink(missing_ok=True)


async def _serve_until(settings: Settings, services: Sequence[str], wait: Callable[[], object], ready: Callable[[Address], object]) -> None:
    from atelier.control import control

    async with control(settings, services, gpu=_gpu_label()) as address:
        ready(address)
        await wait()  # type: ignore[misc]


def _as_found(settings: Settings, address: Address) -> dict[str, Any]:
    """What `running` reads."""
    token_file = settings.token_file or settings.data / "keys" / "token"
    tls = address.tls.as_environment() if address.tls else {}
    return {"target": address.target, "pid": os.getpid(), "token_file": str(token_file.absolute()), "tls": tls}


def _gpu_label() -> str:
    """The product of this machine's GPU, `cpu` where there is none that can be used."""
    from atelier.engines.detect import detect

    try:
        return detect().label
    except ValueError:
        return "cpu"


async def _serve_until_signal(settings: Settings, services: Sequence[str], ready: Callable[[Address], object]) -> None:
    """Signals count from the start: the first process of a container would not hear them otherwise."""
    stop, started = asyncio.Event(), asyncio.Event()

    def tell(address: Address) -> None:
        started.set()
        ready(address)

    serving = asyncio.ensure_future(_serve_until(settings, services, stop.wait, tell))

    def end() -> None:
        stop.set()
        if not started.is_set():
            serving.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    with suppress(asyncio.CancelledError):
        await serving


def _await_thread(stop: threading.Event) -> Callable[[], object]:
    async def wait() -> None:
        while not stop.is_set():
            await asyncio.sleep(0.1)

    return wait


@contextmanager
def _logged(settings: Settings, name: str) -> Iterator[None]:
    """Everything that is logged goes into a file of the data folder and nothing to the terminal, or as JSON to standard error."""
    logs = settings.data / "logs"
    if not settings.log_json:
        logs.mkdir(parents=True, exist_ok=True)
    undo = telemetry.log_into(None if settings.log_json else logs / f"{name}.log", as_json=settings.log_json)
    try:
        yield
    finally:
        undo()


@contextmanager
def _traced(name: str) -> Iterator[None]:
    end = tracing.begin(name, os.environ)
    try:
        yield
    finally:
        end()


@contextmanager
def _locked(data: Path, services: Sequence[str]) -> Iterator[None]:
    """Holds the folder for these services, so that no two processes start the same jobs."""
    data.mkdir(parents=True, exist_ok=True)
    held = []
    try:
        for service in services:
            held.append((data / f".{service}.lock").open("w"))
            try:
                fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                sentence = f"another atelier process works in {data}: use it (`--server`), or another folder (`--data`)"
                raise failed_precondition("DATA_IN_USE", sentence) from None
        yield
    finally:
        for one in held:
            one.close()
