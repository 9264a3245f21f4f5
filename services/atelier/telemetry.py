"""Log lines, as text or as JSON, each with the call and the job that it is about. Prompts, pictures and tokens are never logged."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

LOG_JSON = "ATELIER_LOG_JSON"
REQUEST_ID = "x-request-id"
"""Metadata of a call: a client may choose the id that its log lines have here; it always comes back in the trailing metadata."""

_SANE = re.compile(r"[A-Za-z0-9-]{1,64}")
_JOB = re.compile(r"\bjobs/[a-z0-9-]{4,63}\b")
_EXTRA = ("code", "seconds")
"""Figures of a line that JSON shows as fields of their own."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """The call that something is done for."""

    request_id: str = ""
    method: str = ""
    job: str = ""
    """`jobs/{id}`."""


_NONE = Call()
_call: ContextVar[Call] = ContextVar("call", default=_NONE)
"""Set once a call, in the task that is the call's own: nobody has to set it back."""


def begin_call(method: str, request_id: str) -> str:
    """All that this task logs from now on is of this call; gives its id, the client's where that can be used."""
    chosen = request_id if _SANE.fullmatch(request_id) else secrets.token_hex(8)
    _call.set(Call(request_id=chosen, method=method))
    return chosen


def about_job(name: str) -> None:
    """The call is about a job: `jobs/{id}`; anything else says nothing."""
    if _JOB.fullmatch(name):
        _call.set(replace(_call.get(), job=name))


def request_id() -> str:
    """The id of the call that this is done for; empty where it is none."""
    return _call.get().request_id


def about_call() -> dict[str, str]:
    """What a trace shows of the call: its id, and the job that it is about."""
    call = _call.get()
    return {"atelier.request_id": call.request_id} | ({"atelier.job": call.job} if call.job else {})


class TextFormatter(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with the call's id at its end."""
        identifier = request_id()
        return super().formatMessage(record) + (f" (request {identifier})" if identifier else "")


class JsonFormatter(logging.Formatter):
    """A line for a log store: one JSON object, without the fields that are empty. `job` is what a worker works on."""

    def __init__(self, *, job: str = "") -> None:
        super().__init__()
        self._job = job

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        call, message = _call.get(), record.getMessage()
        named = _JOB.search(message)
        exception = self.formatException(record.exc_info) if record.exc_info else ""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            "request_id": call.request_id,
            "job": call.job or self._job or (named[0] if named else ""),
            "method": call.method,
            **{name: getattr(record, name, "") for name in _EXTRA},
            "exception": "\n".join(filter(None, (exception, record.stack_info))),
        }
        return json.dumps({name: value for name, value in fields.items() if value != ""}, default=str)


def log_into(path: Path | None, *, as_json: bool, logger: str = "", job: str = "") -> Callable[[], None]:
    """Sends what `logger` (empty: everything) says from INFO on into a file, without one to standard error. Gives what undoes it.

    A line that cannot be written is lost and hurts nobody.
    """
    logging.raiseExceptions = False
    handler = logging.FileHandler(path) if path else logging.StreamHandler()
    handler.setFormatter(JsonFormatter(job=job) if as_json else TextFormatter())
    source = logging.getLogger(logger)
    level = source.level
    source.addHandler(handler)
    source.setLevel(logging.INFO)
    source.propagate = False
    logging.captureWarnings(as_json)

    def undo() -> None:
        source.setLevel(level)
        source.propagate = True
        source.removeHandler(handler)
        handler.close()
        logging.captureWarnings(False)

    return undo


def log_of_worker(environment: Mapping[str, str]) -> None:
    """A worker's log: standard error until it ends, as the process that started it has said in the environment."""
    log_into(None, as_json=wants_json(environment), job=environment.get("ATELIER_JOB", ""))


def wants_json(environment: Mapping[str, str]) -> bool:
    """Whether ATELIER_LOG_JSON asks for JSON."""
    return environment.get(LOG_JSON, "").lower() in ("1", "true", "yes", "on")
