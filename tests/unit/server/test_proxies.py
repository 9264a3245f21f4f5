"""Which of Serve's proxies a call goes by, while they come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from atelier.server.proxies import FRESH_SECONDS, Proxies, addresses_of


class Names:
    """What DNS says."""

    def __init__(self, *there: str) -> None:
        self.there: set[str] | None = set(there)
        self.seconds = 0.0
        self.asked = 0

    async def __call__(self) -> set[str]:
        self.asked += 1
        if self.there is None:
            raise OSError("no answer")
        return self.there

    def later(self) -> None:
        self.seconds += FRESH_SECONDS + 1


@pytest.fixture
def names() -> Names:
    return Names("127.0.0.1:1", "127.0.0.1:2")


@pytest.fixture
async def proxies(names: Names) -> AsyncIterator[Proxies]:
    made = Proxies(names, clock=lambda: names.seconds)
    yield made
    await made.close()


async def chosen(proxies: Proxies, times: int) -> set[str]:
    return {(await proxies.choose()).address for _ in range(times)}


async def test_calls_go_by_all_in_turn_and_the_second_try_by_another(proxies: Proxies, names: Names) -> None:
    assert await chosen(proxies, 2) == names.there
    first = await proxies.choose()
    assert (await proxies.choose(other_than=first)) is not first
    assert names.asked == 1


async def test_a_proxy_with_fewer_calls_is_preferred(proxies: Proxies) -> None:
    busy = await proxies.choose()
    with proxies.calling(busy):
        assert busy.address not in await chosen(proxies, 3)


async def test_where_there_is_one_alone_it_gets_the_second_try_too(proxies: Proxies, names: Names) -> None:
    names.there = {"127.0.0.1:1"}
    only = await proxies.choose()
    assert await proxies.choose(other_than=only) is only


async def test_one_that_is_about_to_go_gets_no_new_calls_and_ends_the_ones_it_has(proxies: Proxies, names: Names) -> None:
    leaving = await proxies.choose()
    names.there = {"127.0.0.1:3"}
    with proxies.calling(leaving):
        names.later()
        assert await chosen(proxies, 3) == {"127.0.0.1:3"}
        assert leaving in proxies._leaving
    names.later()
    await proxies.choose()
    assert proxies._leaving == []


async def test_names_that_are_not_known_for_a_while_stay_what_they_were(proxies: Proxies, names: Names) -> None:
    await proxies.choose()
    there, names.there = names.there, None
    names.later()
    assert await chosen(proxies, 4) == there


async def test_names_that_were_never_known_are_an_error(proxies: Proxies, names: Names) -> None:
    names.there = None
    with pytest.raises(OSError, match="no answer"):
        await proxies.choose()


async def test_a_target_is_an_address_or_all_of_a_name() -> None:
    assert await addresses_of("127.0.0.1:9000")() == {"127.0.0.1:9000"}
    assert "127.0.0.1:9000" in await addresses_of("dns:///localhost:9000")()
    with pytest.raises(OSError):
        await addresses_of("dns:///nothing.invalid:9000")()
