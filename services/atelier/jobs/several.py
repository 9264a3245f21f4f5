"""`python -m atelier.jobs.several N MODULE`: a worker's module as N processes that train together, which ends as one would.

torchrun starts them, but when it is asked to stop it exits with 1 whatever they say; here that is PREEMPTED_EXIT_CODE, as of one process.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

from atelier.jobs.launcher import PREEMPTED_EXIT_CODE

LONGEST_GRACE_SECONDS = 3600
"""They may take so long over their checkpoint; whoever asked them to stop is less patient, and ends them."""


def main(processes: str, module: str) -> int:
    """Gives the exit code of the worker as a whole."""
    asked = False
    torchrun: subprocess.Popen[bytes] | None = None

    def stop(*_: Any) -> None:
        nonlocal asked
        asked = True
        if torchrun is not None:
            torchrun.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    options = ["--standalone", f"--nproc-per-node={processes}", f"--shutdown-timeout={LONGEST_GRACE_SECONDS}"]
    torchrun = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *options, "-m", module])
    if asked:  # before there was anybody to pass it on to
        torchrun.send_signal(signal.SIGTERM)
    code = torchrun.wait()
    if code and asked:
        return PREEMPTED_EXIT_CODE
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
