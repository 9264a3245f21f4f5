"""What every command has: where the services are, and where to say things."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from atelier.cli.progress import Transfers
from atelier.client.address import Address
from atelier.client.client import Client
from atelier.client.sources import Sources
from atelier.errors import AtelierError, invalid_field
from atelier.rpc.tls import Tls

_WIDE = 1000
"""Columns of a pipe."""


class Installation(Protocol):
    """What the commands need of `atelier.app`."""

    def running(self, data: Path) -> Address | None:
        """The running `atelier up` of the data folder."""

    def inside(self, data: Path, *, serving: bool) -> AbstractContextManager[Address]:
        """The services inside this process; with `serving` pictures can be generated too."""

    def up(self, data: Path, *, listen: str, insecure: bool, on_ready: Callable[[Address], None]) -> None:
        """All services until SIGINT or SIGTERM."""

    def serve(self, service: str) -> None:
        """One service until SIGINT or SIGTERM; its settings are in the environment."""

    def migrate(self) -> str:
        """Brings the ledger to this version's tables; gives its revision."""


@dataclass(kw_only=True)
class Session:
    """The command line's surroundings; `server` and `token` are empty where nobody named one, and a `token_file` comes before a `token`."""

    installation: Installation
    connect: Callable[[Address], Client]
    data: Path
    hub: Path
    """This machine's Hugging Face cache."""
    server: str = ""
    token: str = ""
    token_file: Path | None = None
    tls: Tls | None = None
    """Whom to trust of servers, and what to show them."""
    json: bool = False
    out: Console = field(default_factory=lambda: Console(soft_wrap=True, highlight=False, emoji=False))
    err: Console = field(default_factory=lambda: Console(stderr=True, soft_wrap=True, highlight=False, emoji=False))
    flags: str = ""
    """The flags that say where the services are, as they were typed: a command that is suggested needs them too."""
    local: bool = False
    """Whether the services run inside this process."""

    @contextmanager
    def client(self, *, serving: bool = False) -> Iterator[Client]:
        """A client of the named server, else of the running `atelier up`, else of services inside this process."""
        address = self._address()
        if address is not None:
            with self.connect(address) as client:
                yield client
            return
        with self.installation.inside(self.data, serving=serving) as inner:
            self.local = True
            with self.connect(inner) as client:
                yield client

    def _address(self) -> Address | None:
        token = read_token(self.token_file) if self.token_file else self.token
        if self.server and token:
            return Address(self.server, token, self.tls)
        running = self.installation.running(self.data)
        # The server that was named may be the data folder's own, whose token is known.
        return running if not self.server or (running and same_place(running.target, self.server)) else Address(self.server, tls=self.tls)

    @property
    def has_token(self) -> bool:
        """Whether somebody gave a token."""
        return bool(self.token_file or self.token)

    @property
    def transfers(self) -> Transfers:
        """What shows how far uploads and downloads are."""
        return Transfers(self.err, quiet=self.json)

    def sources(self, client: Client) -> Sources:
        """What turns paths and names into artifacts."""
        return Sources(client=client, hub=self.hub, progress=self.transfers)

    def show(self, content: Message | Mapping[str, Any], text: str = "") -> None:
        """The result: as one JSON object with --json, else as text for people."""
        if self.json:
            self.line(content)
        elif text:
            self.out.print(text, markup=False)

    def show_table(self, table: Table) -> None:
        """A table for people; for programs that read lines, a row is a line."""
        console = self.out if self.out.is_terminal else Console(file=self.out.file, width=_WIDE, highlight=False, emoji=False)
        console.print(table)

    def line(self, content: Message | Mapping[str, Any]) -> None:
        """A line of JSON."""
        self.out.print(json.dumps(content, ensure_ascii=False, default=as_json), markup=False)

    def note(self, text: str) -> None:
        """A line for people; not a result."""
        self.err.print(text, markup=False, style="dim")

    def warn(self, text: str) -> None:
        """One warning."""
        self.err.print(f"warning: {text}", markup=False, style="yellow")

    def fail(self, error: AtelierError) -> None:
        """One line that says what is wrong and what to do."""
        if self.json:
            violations = [{"field": v.field, "description": v.description} for v in error.violations]
            content = {"status": error.status.name, "reason": error.reason, "message": error.message, "violations": violations}
            self.err.print(json.dumps({"error": content}, ensure_ascii=False), markup=False)
        else:
            self.err.print(f"error: {' '.join(error.message.split())}", markup=False, style="red")


def session_of(context: typer.Context) -> Session:
    """The session of a command."""
    assert isinstance(context.obj, Session)
    return context.obj


def as_json(message: Message) -> dict[str, Any]:
    """A message with the fields' proto names."""
    content: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return content


def same_place(target: str, named: str) -> bool:
    """Whether people who say `named` mean `target`, by its name or number on this machine."""
    places = [place.rpartition("://")[2].rstrip("/").replace("localhost:", "127.0.0.1:", 1) for place in (target, named)]
    return places[0] == places[1] and (target.startswith("https://") or not named.startswith("https://"))


def read_token(path: Path) -> str:
    """The token in a file."""
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise invalid_field("--token-file", f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise invalid_field("--token-file", f"{path} holds no token; it is in keys/token of the server's data folder") from error
