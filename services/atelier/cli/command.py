"""The `atelier` command: its tree, its global flags, and how it ends."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from atelier.cli import artifacts, compile, convert, deploy, generate, jobs, train, up
from atelier.cli.following import INTERRUPTED
from atelier.cli.session import Session, read_token, session_of
from atelier.errors import AtelierError, Status

GLOBALS = {"--server": True, "--token-file": True, "--data": True, "--json": False}
"""Flags that may stand anywhere on the line, and whether they take a value."""

FAILED, USAGE = 1, 2
"""Exit codes."""


def build() -> typer.Typer:
    """The whole command."""
    settings = {"token_normalize_func": _dashes, "help_option_names": ["-h", "--help"]}
    app = typer.Typer(
        help="From pictures to an image endpoint: fine-tune, convert, merge, compile and serve Stable Diffusion.",
        no_args_is_help=True,
        context_settings=settings,
        rich_markup_mode="rich",
        add_completion=True,
    )
    app.callback()(global_flags)
    _add(app, "Services", up.up, up.serve)
    app.add_typer(train.app, name="train", rich_help_panel="Models")
    _add(app, "Models", convert.convert, convert.merge, compile.compile)
    _add(app, "Pictures", deploy.deploy, deploy.undeploy, deploy.deployments, deploy.pools, generate.generate)
    app.add_typer(jobs.app, name="jobs", rich_help_panel="What there is")
    app.add_typer(artifacts.app, name="artifacts", rich_help_panel="What there is")
    app.command()(up.version)
    return app


def global_flags(
    context: typer.Context,
    server: Annotated[str | None, typer.Option("--server", help="Address of a running Atelier (ATELIER_SERVER).")] = None,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File with its token (ATELIER_TOKEN_FILE).")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Data folder of the installation on this machine (ATELIER_DATA).")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON for programs: one object, or a line an event.")] = False,
) -> None:
    """Puts the global flags into the session."""
    session = session_of(context)
    session.server = server or session.server
    session.token = read_token(token_file) if token_file else session.token
    session.data = (data or session.data).expanduser().absolute()
    session.json = json


def run(arguments: Sequence[str], session: Session) -> int:
    """Runs a command line; gives the exit code: 0, 1 for an error, 2 for a line that makes no sense, 130 after Ctrl-C."""
    command = typer.main.get_command(build())
    session.json = "--json" in arguments
    try:
        code = command.main(args=hoisted(arguments), prog_name="atelier", standalone_mode=False, obj=session)
    except AtelierError as error:
        if error.status is Status.UNAUTHENTICATED:
            sentence = f"{session.server} asks for its token; give it with --token-file or ATELIER_TOKEN_FILE"
            error = AtelierError(error.status, error.reason, sentence)
        session.fail(error)
        return USAGE if error.reason == "FLAG_REFUSED" else FAILED
    except typer.TyperException as error:
        if error.format_message():  # empty: the help was asked for by leaving everything out
            session.fail(usage_error(error, arguments))
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def hoisted(arguments: Sequence[str]) -> list[str]:
    """The line with its global flags in front, where typer wants them."""
    front: list[str] = []
    rest: list[str] = []
    remaining = list(arguments)
    while remaining:
        word = remaining.pop(0)
        if word == "--":
            rest += [word, *remaining]
            break
        flag, equals, _ = word.partition("=")
        takes_value = GLOBALS.get(_dashes(flag))
        if takes_value is None:
            rest.append(word)
        else:
            front.append(word)
            front += [remaining.pop(0)] if takes_value and not equals and remaining else []
    return front + rest


def _add(app: typer.Typer, panel: str, *commands: Callable[..., None]) -> None:
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def usage_error(error: typer.TyperException, arguments: Sequence[str]) -> AtelierError:
    """A line that makes no sense, in our words: flags as the scripts write them, and the closest one that there is."""
    possibilities = getattr(error, "possibilities", None)
    name = str(getattr(error, "option_name", ""))
    if name and error.message.startswith("No such option"):
        typed = next((flag for word in arguments if _dashes(flag := word.partition("=")[0]) == name), name)
        closest = f"; did you mean {_closest(typed, possibilities)}?" if possibilities else "; --help lists the flags"
        message = f"there is no flag {typed}{closest}"
    else:
        message = re.sub(r"\s+", " ", error.format_message()).rstrip(".").replace("Value error, ", "")
        message = message[:1].lower() + message[1:]
    return AtelierError(Status.INVALID_ARGUMENT, "USAGE", message)


def _closest(name: str, possibilities: Sequence[str]) -> str:
    best = max(possibilities, key=lambda flag: difflib.SequenceMatcher(None, _dashes(name), flag).ratio())
    return f"--{best[2:].replace('-', '_')}" if "_" in name else best


def _dashes(name: str) -> str:
    """Flags and commands are the same with underscores and with dashes."""
    return name.replace("_", "-")
