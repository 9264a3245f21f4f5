"""Whatever goes wrong, it is one line that says what to do; no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_atelier import serving
from fake_shell import Shell

from atelier.cli.__main__ import require
from atelier.cli.session import same_place
from atelier.errors import AtelierError


@pytest.fixture
def failing(shell: Shell) -> Callable[[Exception], Shell]:
    """A command line whose services do not come up."""

    def arrange(error: Exception) -> Shell:
        shell.installation.up_fails = error
        return shell

    return arrange


def test_a_folder_that_cannot_be_written_is_named(shell: Shell) -> None:
    (shell.folder / "file").write_text("")
    (shell.folder / "az.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shell.add("az.png", "az")
    assert shell(f"artifacts download az {shell.folder}/file") == 1
    assert shell.err.startswith(f"error: {shell.folder}/file: ") and shell.err.count("\n") == 1
    assert "name another place" in shell.err


def test_a_full_disk_is_said_to_be_full(failing: Callable[[Exception], Shell]) -> None:
    shell = failing(OSError(28, "No space left on device", "/data/ledger.db"))
    assert shell("up") == 1
    assert shell.err == "error: /data/ledger.db: no space left on device; make room, or name another folder\n"


def test_a_port_that_is_taken_says_so(failing: Callable[[Exception], Shell]) -> None:
    shell = failing(OSError("cannot listen on 127.0.0.1:7878: it is in use"))
    assert shell("up") == 1
    assert shell.err == "error: cannot listen on 127.0.0.1:7878: it is in use\n"


def test_what_nobody_foresaw_is_one_line_and_its_traceback_is_in_the_log(failing: Callable[[Exception], Shell]) -> None:
    shell = failing(ZeroDivisionError("one\ntwo"))
    assert shell("up") == 1
    log = shell.folder / "data" / "logs" / "command.log"
    assert shell.err == f"error: this should not have happened: ZeroDivisionError: one two; please report it with the end of {log}\n"
    assert "Traceback" in log.read_text()


def test_a_token_that_is_wrong_and_one_that_is_missing_are_told_apart(shell: Shell) -> None:
    (shell.folder / "token").write_text("wrong\n")
    with serving(shell.fake, token="secret") as target:
        assert shell(f"jobs list --server {target}") == 1
        assert shell.err == f"error: {target} asks for its token; give it with --token-file or ATELIER_TOKEN_FILE\n"
        assert shell(f"jobs list --server {target} --token-file {shell.folder}/token") == 1
        assert shell.err.startswith(f"error: {target} does not know the token that was given;")


@pytest.mark.parametrize("content", [b"two\nlines", "wröng".encode(), b"\x7fELF\xff\xfe"])
def test_a_file_that_holds_no_token_is_refused(shell: Shell, content: bytes) -> None:
    (shell.folder / "token").write_bytes(content)
    assert shell(f"jobs list --server {shell.installation.target} --token-file {shell.folder}/token") == 1
    assert "keys/token" in shell.err and shell.err.count("\n") == 1


def test_help_needs_no_token(shell: Shell) -> None:
    assert shell("--token-file nowhere jobs list --help") == 0


def test_a_flag_without_its_value_is_named(shell: Shell) -> None:
    assert shell("jobs list --server") == 2
    assert shell.err == "error: option '--server' requires an argument\n"


def test_a_limit_below_one_is_refused(shell: Shell) -> None:
    assert shell("jobs list --limit 0") == 2
    assert shell("artifacts list --limit -3") == 2


@pytest.mark.parametrize(
    ("named", "same"),
    [
        ("127.0.0.1:7878", True),
        ("http://127.0.0.1:7878/", True),
        ("localhost:7878", True),
        ("127.0.0.1:7879", False),
        ("other:7878", False),
    ],
)
def test_the_data_folders_own_server_is_known_by_all_its_names(named: str, same: bool) -> None:
    assert same_place("127.0.0.1:7878", named) is same


def test_services_that_are_not_installed_are_named_with_their_extra() -> None:
    require("json")
    with pytest.raises(AtelierError, match=r"need no_such_module, .*pip install 'atelier\[all\]'.*--server"):
        require("json", "no_such_module")


@pytest.mark.parametrize("line", ["--version", "version"])
def test_version_is_a_flag_and_a_command(shell: Shell, line: str) -> None:
    assert shell(line) == 0
    assert shell.out.startswith("atelier ")
    assert shell(f"{line} --json") == 0
    assert json.loads(shell.out)["version"]


def test_grpc_says_nothing_of_its_own(shell: Shell, tmp_path: Path) -> None:
    """TLS to a port that speaks none: gRPC logs the handshake's failure unless it is told not to before it is imported."""
    target = shell.installation.target
    line = [sys.executable, "-m", "atelier.cli", "--server", f"https://{target}", "pools"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GRPC_")}
    ended = subprocess.run(line, capture_output=True, text=True, env={**environment, "ATELIER_DATA": str(tmp_path)}, check=False)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith(f"error: cannot reach {target};")


@pytest.mark.parametrize(
    "line",
    [
        "convert az --to webui -o {}",
        "merge base az -o {}",
        "compile base -o {}",
        "generate fox -o {}",
        "train promote jobs/a --step 1 --output_dir {}",
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_any_work(line: str, shell: Shell) -> None:
    (shell.folder / "file").write_text("")
    assert shell(line.format(shell.folder / "file" / "result")) == 1
    assert "/result" in shell.err and f"{shell.folder}/file is a file" in shell.err
    assert not shell.fake.asked
