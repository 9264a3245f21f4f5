from __future__ import annotations

import asyncio

import pytest

from atelier.server.replica import Outbox
from atelier.v1 import image_pb2


async def test_a_slow_reader_gets_the_latest_progress_and_every_picture() -> None:
    outbox = Outbox(asyncio.get_running_loop())
    for step in range(100):
        outbox.put(progress=image_pb2.GenerateProgress(step=step))
        outbox.put(picture=image_pb2.GeneratedImage(index=step))
    outbox.put(ended=True)
    await asyncio.sleep(0)
    assert (await outbox.next()).progress.step == 99  # type: ignore[union-attr]
    assert [(await outbox.next()).image.index for _ in range(100)] == list(range(100))  # type: ignore[union-attr]
    assert await outbox.next() is None


async def test_an_error_comes_after_the_pictures_that_were_made() -> None:
    outbox = Outbox(asyncio.get_running_loop())
    await asyncio.to_thread(outbox.put, picture=image_pb2.GeneratedImage(index=0))
    await asyncio.to_thread(outbox.put, ended=True, error=RuntimeError("lost"))
    assert (await outbox.next()).HasField("image")  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="lost"):
        await outbox.next()
