"""A command line before a fake Atelier."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_atelier import FakeAtelier
from rich.console import Console

from atelier.cli.command import run
from atelier.cli.session import Session
from atelier.client import Address, Client

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class FakeInstallation:
    """An `atelier.app` whose services are the fake's."""

    target: str
    up_runs: bool = True
    up_fails: Exception | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def running(self, data: Path) -> Address | None:
        return Address(self.target) if self.up_runs else None

    @contextmanager
    def inside(self, data: Path, *, serving: bool) -> Iterator[Address]:
        self.calls.append(("inside", serving))
        try:
            yield Address(self.target)
        finally:
            self.calls.append(("left", serving))

    def up(self, data: Path, *, listen: str, insecure: bool, on_ready: Callable[[Address], None]) -> None:
        self.calls.append(("up", (data, listen, insecure)))
        if self.up_fails:
            raise self.up_fails
        on_ready(Address(self.target))

    def serve(self, service: str) -> None:
        self.calls.append(("serve", service))

    def migrate(self) -> str:
        self.calls.append(("migrate", ""))
        return "0002"


class InterruptedJobs:
    """Jobs whose watch is interrupted by Ctrl-C."""

    def __init__(self, jobs: Any, at: int) -> None:
        self._jobs = jobs
        self._at = at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jobs, name)

    def watch(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        for response in self._jobs.watch(*arguments, **options):
            yield response
            if response.event.sequence == self._at:
                raise KeyboardInterrupt


@dataclass
class Shell:
    """Types command lines, and shows what came out."""

    fake: FakeAtelier
    installation: FakeInstallation
    folder: Path
    terminal: bool = False
    width: int = 200
    interrupt_at: int = 0
    """Sequence of the event at which somebody presses Ctrl-C."""
    out: str = ""
    err: str = ""

    def __call__(self, line: str | list[str]) -> int:
        out, err = io.StringIO(), io.StringIO()
        options: dict[str, Any] = {
            "soft_wrap": True,
            "highlight": False,
            "emoji": False,
            "force_terminal": self.terminal,
            "width": self.width,
        }
        session = Session(
            installation=self.installation,
            connect=self.connect,
            data=self.folder / "data",
            hub=self.folder / "hub",
            out=Console(file=out, **options),
            err=Console(file=err, **options),
        )
        code = run(shlex.split(line) if isinstance(line, str) else line, session)
        self.out, self.err = out.getvalue(), err.getvalue()
        return code

    def connect(self, address: Address) -> Client:
        client = Client(address.target, address.token)
        if self.interrupt_at:
            client.jobs = InterruptedJobs(client.jobs, self.interrupt_at)  # type: ignore[assignment]
        return client

    def pictures(self, name: str, count: int) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        for index in range(count):
            (folder / f"{index}.png").write_bytes(PNG + f"{name}{index}".encode())
        return folder

    def add(self, name: str, tag: str) -> str:
        """An artifact of the store, from files of this machine."""
        with Client(self.installation.target) as client:
            return client.artifacts.upload(self.folder / name, tags=[tag]).name
