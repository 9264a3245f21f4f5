"""How a stream that may last for hours ends with its server: by UNAVAILABLE, upon which who watches comes again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from atelier.errors import AtelierError, unavailable

Response = TypeVar("Response")


async def until(stopping: asyncio.Event, responses: AsyncGenerator[Response]) -> AsyncGenerator[Response]:
    """The responses as they come, for as long as the server does not stop. Raises UNAVAILABLE then."""
    async with aclosing(responses):
        while True:
            try:
                response = await wait_until(stopping, anext(responses))
            except StopAsyncIteration:
                return
            yield response


async def wait_until(stopping: asyncio.Event, answer: Awaitable[Response]) -> Response:
    """The answer, if it comes before the server stops. Raises UNAVAILABLE otherwise."""
    stopped: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())
    coming: asyncio.Future[Response] = asyncio.ensure_future(answer)
    try:
        await asyncio.wait((coming, stopped), return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return coming.result()
        raise _stopping()
    finally:
        for one in (coming, stopped):
            one.cancel()
        await asyncio.gather(coming, stopped, return_exceptions=True)


def _stopping() -> AtelierError:
    return unavailable("SERVER_STOPPING", "the server stops: ask again, from where this ended", retry_after_seconds=0.5)
