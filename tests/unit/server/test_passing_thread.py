from __future__ import annotations

import threading

import pytest

from atelier.server.passing_thread import in_passing_thread


def test_work_is_done_in_a_thread_that_has_ended() -> None:
    thread = in_passing_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_what_the_work_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_passing_thread(lambda: 1 / 0)
