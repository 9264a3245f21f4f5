"""Somebody changed what shall be served: those who wait for that are woken, from any thread."""

from __future__ import annotations

import asyncio


class Changes:
    """A broadcast. Made within the event loop that waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Wakes all who wait now."""
        self._loop.call_soon_threadsafe(self._flip)

    async def wait(self, timeout_seconds: float) -> None:
        """Until the next change, or so many seconds."""
        event = self._next
        try:
            async with asyncio.timeout(timeout_seconds):
                await event.wait()
        except TimeoutError:
            return

    def _flip(self) -> None:
        event, self._next = self._next, asyncio.Event()
        event.set()
