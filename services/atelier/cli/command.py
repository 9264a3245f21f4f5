"""The `atelier` command: its tree, its global flags, and how it ends."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from typer import rich_utils

from atelier.cli import INTERRUPTED, artifacts, compile, convert, deploy, engines, generate, jobs, pools, train, up
from atelier.cli.failures import dashes, of_system, of_usage, unauthenticated, unexpected
from atelier.cli.session import Session, session_of
from atelier.errors import AtelierError, Status
from atelier.rpc.tls import Tls

GLOBALS = {
    "--server": True, "--token-file": True, "--ca-file": True, "--cert-file": True, "--key-file": True, "--data": True, "--json": False,
}  # fmt: skip
"""Flags that may stand anywhere on the line, and whether they take a value."""

FAILED, USAGE = 1, 2
"""Exit codes."""


class WholeFlags(rich_utils.OptionHighlighter):
    """typer's own would end long flags in dots on a narrow terminal, where nobody could type them."""

    def __call__(self, text: str | Text) -> Text:
        """The text, which goes on in the next line where it is too long."""
        made = super().__call__(text)
        made.overflow = "fold"
        return made


def build() -> typer.Typer:
    """The whole command."""
    rich_utils.highlighter = WholeFlags()
    settings = {"token_normalize_func": dashes, "help_option_names": ["-h", "--help"]}
    app = typer.Typer(
        help="From pictures to an image endpoint: fine-tune, convert, merge, compile and serve Stable Diffusion.",
        no_args_is_help=True,
        context_settings=settings,
        rich_markup_mode="rich",
        add_completion=True,
    )
    app.callback()(global_flags)
    _add(app, "Services", up.up, up.serve, up.migrate)
    app.add_typer(train.app, name="train", rich_help_panel="Models")
    _add(app, "Models", convert.convert, convert.merge, compile.compile)
    _add(app, "Pictures", deploy.deploy, deploy.undeploy, deploy.deployments, pools.pools, generate.generate)
    app.add_typer(engines.app, name="engines", rich_help_panel="Pictures")
    app.add_typer(jobs.app, name="jobs", rich_help_panel="What there is")
    app.add_typer(artifacts.app, name="artifacts", rich_help_panel="What there is")
    app.command()(up.version)
    return app


def global_flags(
    context: typer.Context,
    server: Annotated[str | None, typer.Option("--server", help="Address of a running Atelier (ATELIER_SERVER).")] = None,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File with its token (ATELIER_TOKEN_FILE).")] = None,
    ca_file: Annotated[Path | None, typer.Option("--ca-file", help="Authority (PEM) of its certificate (ATELIER_CA_FILE).")] = None,
    cert_file: Annotated[Path | None, typer.Option("--cert-file", help="Certificate to show it (ATELIER_CERT_FILE).")] = None,
    key_file: Annotated[Path | None, typer.Option("--key-file", help="Its key (ATELIER_KEY_FILE).")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Data folder of the installation on this machine (ATELIER_DATA).")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON for programs: one object, or a line an event.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Shows the version.", callback=up.version_flag, is_eager=True)] = False,
) -> None:
    """Puts the global flags into the session."""
    session = session_of(context)
    files = {"--ca-file": ca_file, "--cert-file": cert_file, "--key-file": key_file}
    typed = {"--server": server, "--token-file": token_file, **files, "--data": data}
    session.flags = "".join(f" {flag} {shlex.quote(str(value))}" for flag, value in typed.items() if value)
    session.server = server or session.server
    session.token_file = token_file or session.token_file
    if ca_file or cert_file or key_file:
        session.tls = Tls(ca=ca_file, certificate=cert_file, key=key_file)
    session.data = (data or session.data).expanduser().absolute()
    session.json = json


def run(arguments: Sequence[str], session: Session) -> int:
    """Runs a command line; gives the exit code: 0, 1 for an error, 2 for a line that makes no sense, 130 after Ctrl-C."""
    command = typer.main.get_command(build())
    session.json = "--json" in arguments
    try:
        code = command.main(args=hoisted(arguments), prog_name="atelier", standalone_mode=False, obj=session)
    except AtelierError as error:
        refused = error.status is Status.UNAUTHENTICATED
        session.fail(unauthenticated(error, server=session.server, given=session.has_token) if refused else error)
        return USAGE if error.reason == "FLAG_REFUSED" else FAILED
    except typer.TyperException as error:
        if error.format_message():  # empty: the help was asked for by leaving everything out
            session.fail(of_usage(error, arguments))
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        session.fail(of_system(error))
        return FAILED
    except Exception as error:
        session.fail(unexpected(error, data=session.data))
        return FAILED
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
        takes_value = GLOBALS.get(dashes(flag))
        if takes_value is None:
            rest.append(word)
        elif takes_value and not equals and not remaining:
            return [*front, word]  # its value is missing, which the parser says
        else:
            front.append(word)
            front += [remaining.pop(0)] if takes_value and not equals else []
    return front + rest


def _add(app: typer.Typer, panel: str, *commands: Callable[..., None]) -> None:
    for command in commands:
        app.command(rich_help_panel=panel)(command)
