"""`python -m atelier.kubernetes.ray_certificate`, before Ray in each of its pods: a certificate for the address that the pod has.

Ray's processes show it to each other (`RAY_USE_TLS=1`, both ways). Only this program sees the authority's key.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from atelier.certificates import CA, CERTIFICATE, KEY, Authority, Pair, host_name

LOCAL = ("localhost", "127.0.0.1")
"""Ray's processes reach those of their own pod under these too."""


def provide(authority: Path, into: Path, hosts: Sequence[str]) -> None:
    """Issues a certificate of the authority in a folder into another folder, with its key, which nobody else reads.

    It lives as long as the authority: a pod that keeps its address for years keeps its certificate, and Ray reads it but once.
    Raises ValueError where the authority cannot issue, OSError where a folder cannot be read or written.
    """
    pair = Pair(certificate=(authority / CERTIFICATE).read_bytes(), key=(authority / KEY).read_bytes())
    loaded = Authority.load(pair)
    ends = loaded.certificate.not_valid_after_utc
    issued = loaded.issue(hosts[0], (*hosts, *LOCAL), life=ends - loaded.certificate.not_valid_before_utc)
    for name, content, mode in ((KEY, issued.key, 0o400), (CERTIFICATE, issued.certificate, 0o444), (CA, pair.certificate, 0o444)):
        file = into / name
        # A container that is started again finds what its predecessor has written.
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
            opened.write(content)


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m atelier.kubernetes.ray_certificate", description=__doc__)
    parser.add_argument("--authority", type=Path, default=Path("/etc/atelier/ray-ca"), help=f"folder with {CERTIFICATE} and {KEY}")
    parser.add_argument("--into", type=Path, default=Path("/etc/atelier/ray-tls"), help="folder for the certificate")
    parser.add_argument("--host", action="append", required=True, type=host_name, help="name or IP address that Ray is reached at")
    given = parser.parse_args(words)
    try:
        provide(given.authority, given.into, given.host)
    except (OSError, ValueError) as error:
        sys.exit(f"error: no certificate of the authority in {given.authority}: {error}")


if __name__ == "__main__":
    main()
