"""How far a job is: bars on a terminal, a line now and then elsewhere, a JSON line an event with --json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from google.protobuf import json_format
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn

from atelier.v1 import job_pb2

_STYLES = {job_pb2.LogLine.LEVEL_WARNING: ("warning: ", "yellow"), job_pb2.LogLine.LEVEL_ERROR: ("error: ", "red")}


class View(Protocol):
    """What a job's events are shown on."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def progress(self, progress: job_pb2.JobProgress) -> None:
        """Work went on."""

    def line(self, text: str, style: str = "") -> None:
        """A line for people."""


def view(console: Console) -> View:
    """The view that fits where the output goes."""
    return Bars(console) if console.is_terminal else Lines(console)


class Lines:
    """A line when a phase begins, and at every tenth of it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def progress(self, progress: job_pb2.JobProgress) -> None:
        """See View."""
        tenth = 10 * progress.step // progress.total_steps if progress.total_steps else 0
        if self._said.get(progress.phase) == tenth:
            return
        self._said[progress.phase] = tenth
        steps = f" {progress.step}/{progress.total_steps}" if progress.total_steps else ""
        figures = figures_of(progress)
        self.line(f"{progress.phase}{steps}" + (f"  {figures}" if figures else ""))

    def line(self, text: str, style: str = "") -> None:
        """See View."""
        self._console.print(text, markup=False, style=style)


class Bars:
    """A bar a phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}")
        self._bars = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def progress(self, progress: job_pb2.JobProgress) -> None:
        """See View."""
        if progress.phase not in self._tasks:
            for task in self._tasks.values():
                total = self._bars.tasks[task].total
                self._bars.update(task, completed=total or 1, total=total or 1, figures="")
            self._tasks[progress.phase] = self._bars.add_task(progress.phase, total=None, figures="")
        total = progress.total_steps or None
        self._bars.update(self._tasks[progress.phase], completed=progress.step, total=total, figures=figures_of(progress))

    def line(self, text: str, style: str = "") -> None:
        """See View."""
        self._console.print(text, markup=False, style=style)


def figures_of(progress: job_pb2.JobProgress) -> str:
    """Loss, learning rate, speed and time left, as far as they are known."""
    parts = []
    if progress.HasField("loss"):
        parts.append(f"loss {progress.loss:.4f}")
    if progress.HasField("learning_rate"):
        parts.append(f"lr {progress.learning_rate:.2g}")
    if progress.HasField("steps_per_second"):
        parts.append(f"{progress.steps_per_second:.2f} steps/s")
    if progress.HasField("eta_seconds") and progress.step < progress.total_steps:
        minutes, seconds = divmod(round(progress.eta_seconds), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(parts)


class JobDisplay:
    """Shows a job's events on a view, and keeps the sample pictures in a folder where one is given."""

    def __init__(self, view: View, *, samples: Path | None) -> None:
        self._view = view
        self._samples = samples

    def event(self, event: job_pb2.JobEvent) -> None:
        """Shows one event."""
        match event.WhichOneof("event"):
            case "progress":
                self._view.progress(event.progress)
            case "checkpoint":
                self._view.line(f"checkpoint at step {event.checkpoint.step}", "dim")
            case "log":
                prefix, style = _STYLES.get(event.log.level, ("", "dim"))
                self._view.line(prefix + event.log.message, style)
            case "attempt" if event.attempt.reason != "started":
                self._view.line(f"attempt {event.attempt.attempt}: {event.attempt.reason}", "yellow")
            case "sample":
                self._sample(event.sample)

    def _sample(self, sample: job_pb2.SamplePicture) -> None:
        if self._samples is None or not sample.png:
            return
        self._samples.mkdir(parents=True, exist_ok=True)
        path = self._samples / f"{sample.step:06d}-{sample.index}.png"
        path.write_bytes(sample.png)
        self._view.line(f"sample picture {path}", "dim")


class JsonDisplay:
    """A JSON line an event; sample pictures are kept as files, not printed."""

    def __init__(self, console: Console, *, samples: Path | None) -> None:
        self._console = console
        self._samples = JobDisplay(Lines(Console(quiet=True)), samples=samples)

    def event(self, event: job_pb2.JobEvent) -> None:
        """Prints one event."""
        if event.WhichOneof("event") == "sample":
            self._samples.event(event)
            event.sample.ClearField("png")
        content = json_format.MessageToDict(event, preserving_proto_field_name=True)
        self._console.print(json.dumps({"event": content}, ensure_ascii=False), markup=False)


class Transfers:
    """Shows how far uploads and downloads are."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet or not console.is_terminal

    @contextmanager
    def __call__(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """`what` says what is on its way; gives what is told bytes done and bytes in all."""
        if self._quiet:
            yield lambda done, total: None
            return
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
        with Progress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
