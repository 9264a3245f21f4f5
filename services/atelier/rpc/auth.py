"""Who may call: nobody without the token, where there is one; health is open to all."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from atelier.errors import AtelierError, Status
from atelier.rpc.interceptors import Authorize

OPEN = ("/grpc.health.v1.Health/",)
"""Methods that need no token: a probe has none."""


def allow_all(_method: str, _metadata: Mapping[str, str]) -> None:
    """For a port whose servicers authenticate each call themselves, and for tests."""


def bearer_token(token: str) -> Authorize:
    """Asks every call for `authorization: Bearer TOKEN`."""
    wanted = f"Bearer {token}".encode()

    def authorize(method: str, metadata: Mapping[str, str]) -> None:
        if method.startswith(OPEN):
            return
        if not hmac.compare_digest(metadata.get("authorization", "").encode(), wanted):
            raise AtelierError(
                Status.UNAUTHENTICATED, "TOKEN_MISSING_OR_WRONG", "send the installation's token as `authorization: Bearer TOKEN`"
            )

    return authorize
