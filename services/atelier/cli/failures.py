"""What went wrong with a command, as one line that says what to do next; never a traceback."""

from __future__ import annotations

import contextlib
import difflib
import errno
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from atelier.errors import AtelierError, Status

LOG = Path("logs") / "command.log"
"""In the data folder: the tracebacks of what nobody foresaw."""

_ADVICE: Mapping[int, str] = {
    errno.ENOSPC: "make room, or name another folder",
    errno.EDQUOT: "make room, or name another folder",
    errno.EACCES: "name a place where you may read and write",
    errno.EPERM: "name a place where you may read and write",
    errno.EROFS: "name a place where you may read and write",
    errno.EEXIST: "there is something of that name: name another place",
    errno.ENOTDIR: "a file stands where a folder is wanted: name another place",
    errno.EISDIR: "a folder stands where a file is wanted: name another place",
}
"""What to do about an error of the system."""


def unauthenticated(error: AtelierError, *, server: str, given: bool) -> AtelierError:
    """The server's refusal, in the words of this machine's flags."""
    known = f"{server or 'the server'} does not know the token that was given" if given else f"{server or 'the server'} asks for its token"
    sentence = f"{known}; give it with --token-file or ATELIER_TOKEN_FILE"
    return AtelierError(error.status, error.reason, sentence)


def of_system(error: OSError) -> AtelierError:
    """A file, folder or port that cannot be used."""
    if error.errno is None or error.strerror is None:
        return AtelierError(Status.FAILED_PRECONDITION, "SYSTEM", str(error))
    # Of a move or link, the second path is the one that is wanted.
    path = error.filename2 or error.filename
    where = f"{path}: " if path is not None else ""
    advice = _ADVICE.get(error.errno, "name another place")
    return AtelierError(Status.FAILED_PRECONDITION, "SYSTEM", f"{where}{error.strerror.lower()}; {advice}")


def unexpected(error: Exception, *, data: Path) -> AtelierError:
    """A fault of ours: its traceback goes into the data folder's log, where there is one."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    sentence = f"this should not have happened: {' '.join(said.split())[:300]}"
    with contextlib.suppress(OSError):
        (data / LOG).parent.mkdir(parents=True, exist_ok=True)
        with (data / LOG).open("a", encoding="utf-8") as stream:
            stream.writelines(traceback.format_exception(error))
        sentence += f"; please report it with the end of {data / LOG}"
    return AtelierError(Status.INTERNAL, "COMMAND_FAILED", sentence)


def of_usage(error: typer.TyperException, arguments: Sequence[str]) -> AtelierError:
    """A line that makes no sense, in our words: flags as the scripts write them, and the closest one that there is."""
    possibilities = getattr(error, "possibilities", None)
    name = str(getattr(error, "option_name", ""))
    if name and error.message.startswith("No such option"):
        typed = next((flag for word in arguments if dashes(flag := word.partition("=")[0]) == name), name)
        closest = f"; did you mean {_closest(typed, possibilities)}?" if possibilities else "; --help lists the flags"
        message = f"there is no flag {typed}{closest}"
    else:
        message = re.sub(r"\s+", " ", error.format_message()).rstrip(".").replace("Value error, ", "")
        message = message[:1].lower() + message[1:]
        if message.startswith(("no such command", "missing command")) and "mean" not in message:
            message += "; --help lists the commands"
    return AtelierError(Status.INVALID_ARGUMENT, "USAGE", message)


def dashes(name: str) -> str:
    """Flags and commands are the same with underscores and with dashes."""
    return name.replace("_", "-")


def _closest(name: str, possibilities: Sequence[str]) -> str:
    best = max(possibilities, key=lambda flag: difflib.SequenceMatcher(None, dashes(name), flag).ratio())
    return f"--{best[2:].replace('-', '_')}" if "_" in name else best
