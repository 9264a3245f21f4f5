"""`python -m atelier.demo FOLDER`: the whole path, from six pictures to an endpoint; what is to be seen is left in the folder."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from atelier.client import Client
from atelier.demo import report
from atelier.demo.service import atelier_up
from atelier.demo.walk import Walk, summary
from atelier.errors import AtelierError

MARK = ".atelier-demo"
"""A file that says that a folder is an earlier demo's, and may be emptied."""


def main() -> None:
    """Runs the demo. Whatever it started is stopped when it ends, also by an error, Ctrl-C or SIGTERM."""
    console = Console(highlight=False, emoji=False)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo").absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _prepare(folder)
        findings = report.Findings(facts={"data": str(folder / "data")})
        begin = time.monotonic()
        with atelier_up(folder / "data", log=folder / "up.log") as address, Client(address.target, address.token) as client:
            findings.times.append(("start atelier", time.monotonic() - begin))
            Walk(client=client, folder=folder, console=console, findings=findings).run()
    except (AtelierError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    for line in summary(findings):
        console.print(line, markup=False)
    console.print(f"look at {folder / 'index.html'}", style="bold", markup=False)


def _prepare(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise RuntimeError(f"{folder} is not empty and not an earlier demo's: name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()


if __name__ == "__main__":
    main()
