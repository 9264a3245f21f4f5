"""Who may call: nobody without the token, where there is one; health is open to all."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from atelier.errors import AtelierError, Status, failed_precondition
from atelier.rpc.interceptors import Authorize

OPEN = ("/grpc.health.v1.Health/",)
"""Methods that need no token: a probe has none."""

RECHECK_SECONDS = 1.0
"""How often the file of tokens is looked at."""


def allow_all(_method: str, _metadata: Mapping[str, str]) -> None:
    """For a port whose servicers authenticate each call themselves, and for tests."""


class Tokens:
    """The tokens that open a port: a line each of a file, which is read again when it has changed; blank lines and `#` do not count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at = -RECHECK_SECONDS
        self._tokens: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """The tokens now; those of before where the file cannot be read any more. Raises FAILED_PRECONDITION when there never was one."""
        if time.monotonic() - self._read_at >= RECHECK_SECONDS:
            self._read_at = time.monotonic()
            with suppress(OSError):
                lines = (line.strip() for line in self._path.read_text().splitlines())
                self._tokens = tuple(line for line in lines if line and not line.startswith("#")) or self._tokens
        if not self._tokens:
            raise failed_precondition("NO_TOKEN", f"{self._path} holds no token: put one on a line of its own")
        return self._tokens


def bearer_token(tokens: Tokens | str) -> Authorize:
    """Asks every call for `authorization: Bearer TOKEN`."""

    def authorize(method: str, metadata: Mapping[str, str]) -> None:
        if method.startswith(OPEN):
            return
        given = metadata.get("authorization", "").encode()
        wanted = (tokens,) if isinstance(tokens, str) else tokens.all
        # All are compared, so that the time says nothing of which one was near.
        if not any([hmac.compare_digest(given, f"Bearer {token}".encode()) for token in wanted]):
            raise AtelierError(
                Status.UNAUTHENTICATED, "TOKEN_MISSING_OR_WRONG", "send the installation's token as `authorization: Bearer TOKEN`"
            )

    return authorize
