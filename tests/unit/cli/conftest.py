"""The fakes lie beside the tests, here and with those of the client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fake_shell import Shell

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "client")]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A command line, and the fake Atelier that it talks to."""
    from fake_atelier import FakeAtelier, serving
    from fake_shell import FakeInstallation, Shell

    fake = FakeAtelier()
    (tmp_path / "server").mkdir()
    with serving(fake, tmp_path / "server") as target:
        yield Shell(fake, FakeInstallation(target), tmp_path)
