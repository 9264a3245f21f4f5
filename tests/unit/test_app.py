"""How a running `atelier up` is found."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from atelier import app
from atelier.client import Address


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "token").write_text("secret")
    return tmp_path


def note(data: Path, *, port: int, pid: int) -> None:
    (data / app.RUN_FILE).write_text(
        json.dumps({"target": f"127.0.0.1:{port}", "pid": pid, "token_file": str(data / "keys" / "token"), "tls": {}})
    )


def test_it_is_found_by_its_note_while_it_answers(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        note(data, port=port, pid=os.getpid())
        assert app.running(data) == Address(f"127.0.0.1:{port}", "secret")


def test_the_note_of_one_that_was_killed_counts_for_nothing_though_its_process_id_is_another_s(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    note(data, port=port, pid=os.getpid())
    assert app.running(data) is None


@pytest.mark.parametrize("content", ["", "{}", '{"target": "x", "pid": 1}', "[]"])
def test_a_note_that_makes_no_sense_counts_for_nothing(data: Path, content: str) -> None:
    (data / app.RUN_FILE).write_text(content)
    assert app.running(data) is None
