"""Serve's gRPC proxies: one on Ray's head, and one on each node that has a replica; every one reaches all replicas."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from atelier.rpc.channel import aio_channel
from atelier.v1 import replica_pb2_grpc

logger = logging.getLogger("atelier.server")

Addresses = Callable[[], Awaitable[set[str]]]
"""Gives `host:port` of each proxy that is there. Raises OSError where that is not known."""

FRESH_SECONDS = 5.0
"""For so long the names are not asked for again. A proxy whose node is about to go leaves them half a minute before."""


@dataclass(kw_only=True)
class Proxy:
    """One proxy, and how many calls go through it now."""

    address: str
    channel: grpc.aio.Channel
    sampling: Any
    calls: int = 0

    @property
    def lost(self) -> bool:
        """Whether the last attempt to reach it has failed."""
        return self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Proxies:
    """Chooses a proxy for each call, among those that `addresses` gives; see `addresses_of`.

    gRPC itself would ask for a name's addresses once, and again when a connection breaks: it would go on calling by a proxy that is about
    to go, never by one that has come, and could not be told to make the second try by another one.
    """

    def __init__(self, addresses: Addresses, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses = addresses
        self._clock = clock
        self._there: dict[str, Proxy] = {}
        self._leaving: list[Proxy] = []
        self._asked = float("-inf")
        self._asking = asyncio.Lock()
        self._turn = 0

    async def choose(self, *, other_than: Proxy | None = None) -> Proxy:
        """One with the fewest calls, in turn; where there are several, one that can be reached, and not `other_than`.

        Raises OSError where none is known.
        """
        await self._refresh()
        there = list(self._there.values())
        others = [one for one in there if one is not other_than] or there
        reached = [one for one in others if not one.lost] or others
        self._turn += other_than is None
        first = self._turn % len(reached)
        return min(reached[first:] + reached[:first], key=lambda one: one.calls)

    @contextmanager
    def calling(self, proxy: Proxy) -> Iterator[Any]:
        """A stub of Sampling, for one call."""
        proxy.calls += 1
        try:
            yield proxy.sampling
        finally:
            proxy.calls -= 1

    async def close(self) -> None:
        """Closes all channels."""
        for proxy in (*self._there.values(), *self._leaving):
            await proxy.channel.close()

    async def _refresh(self) -> None:
        async with self._asking:
            if self._clock() < self._asked + FRESH_SECONDS:
                return
            try:
                addresses = await self._addresses()
            except OSError as error:
                if not self._there:
                    raise
                logger.warning("the addresses of Serve's proxies are not known now: %s", error)
                addresses = set(self._there)
            self._asked = self._clock()
            self._leaving += [self._there.pop(address) for address in set(self._there) - addresses]
            for address in sorted(addresses - set(self._there)):
                channel = aio_channel(address)
                self._there[address] = Proxy(address=address, channel=channel, sampling=replica_pb2_grpc.SamplingStub(channel))
            for proxy in [one for one in self._leaving if not one.calls]:
                self._leaving.remove(proxy)
                await proxy.channel.close()


def addresses_of(target: str) -> Addresses:
    """The address `host:port`, or for `dns:///host:port` all addresses that the name has at the time."""
    place = target.removeprefix("dns:///")
    host, _, port = place.rpartition(":")

    async def one() -> set[str]:
        return {place}

    async def named() -> set[str]:
        found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        return {f"[{address[0]}]:{port}" if family == socket.AF_INET6 else f"{address[0]}:{port}" for family, *_, address in found}

    return one if place == target else named
