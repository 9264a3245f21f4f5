"""Objects of the API server that a thread keeps current: listed once, then watched."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import urllib3
from kubernetes import watch
from kubernetes.client.exceptions import ApiException

WATCH_SECONDS = 120
"""After which they are listed again, whatever was missed."""
CONNECT_SECONDS, SILENCE_SECONDS = 5, WATCH_SECONDS + 15
"""A connection that ended without a word is noticed after the second."""
END_SECONDS = 2.0
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 1.0, 30.0
GONE = 410

logger = logging.getLogger("atelier.kubernetes")


class Watched:
    """The objects of a namespace that `listing` (`CoreV1Api.list_namespaced_pod`, say) gives for two selectors.

    An API server that is away is a line in the log and another try; until then the objects are those that it gave last. `changed` is
    called from the thread.
    """

    def __init__(
        self,
        listing: Callable[..., Any],
        *,
        namespace: str,
        label_selector: str = "",
        field_selector: str = "",
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._listing = listing
        self._namespace = namespace
        self._selectors = {"label_selector": label_selector, "field_selector": field_selector}
        self._changed = changed
        self._found: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._watch = watch.Watch()  # type: ignore[no-untyped-call]
        self._said = ""

    @property
    def objects(self) -> tuple[Any, ...] | None:
        """The client's models of them, by name; None before they were listed for the first time."""
        with self._lock:
            return None if self._found is None else tuple(self._found[name] for name in sorted(self._found))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps them current until the block ends."""
        thread = threading.Thread(target=self._work, name=f"watch {self._selectors['label_selector']}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            end = time.monotonic() + END_SECONDS
            while thread.is_alive() and time.monotonic() < end:
                self._watch.stop()  # type: ignore[no-untyped-call]  # again: a watch that is just being opened does not hear of it
                thread.join(timeout=0.05)

    def _work(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopped.is_set():
            try:
                version = self._list()
                pause = FIRST_PAUSE_SECONDS
                self._follow(version)
            except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
                if isinstance(error, ApiException) and error.status == GONE:
                    continue
                self._say(f"{self._listing.__name__} fails, and is tried again: {told(error)}")
                self._stopped.wait(pause)
                pause = min(2 * pause, LAST_PAUSE_SECONDS)
            except Exception:
                logger.exception("watching failed; trying again")
                self._stopped.wait(LAST_PAUSE_SECONDS)

    def _list(self) -> str:
        answer = self._listing(self._namespace, **self._selectors, _request_timeout=(CONNECT_SECONDS, SILENCE_SECONDS))
        with self._lock:
            self._found = {one.metadata.name: one for one in answer.items}
        self._say("")
        self._changed()
        return str(answer.metadata.resource_version)

    def _follow(self, version: str) -> None:
        timeouts = {"timeout_seconds": WATCH_SECONDS, "_request_timeout": (CONNECT_SECONDS, SILENCE_SECONDS)}
        stream = self._watch.stream(  # type: ignore[no-untyped-call]
            self._listing, self._namespace, **self._selectors, resource_version=version, **timeouts
        )
        for event in stream:
            if self._stopped.is_set():
                return
            one = event["object"]
            with self._lock:
                assert self._found is not None
                if event["type"] == "DELETED":
                    self._found.pop(one.metadata.name, None)
                elif event["type"] in ("ADDED", "MODIFIED"):
                    self._found[one.metadata.name] = one
            self._changed()

    def _say(self, sentence: str) -> None:
        """Each trouble once, and its end."""
        if self._stopped.is_set() or sentence == self._said:
            return
        if sentence:
            logger.warning("%s", sentence)
        else:
            logger.info("the API server answers %s again", self._listing.__name__)
        self._said = sentence


def told(error: Exception) -> str:
    """A failure of the API server in a few words."""
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}"
    if isinstance(error, urllib3.exceptions.MaxRetryError):
        return str(error.reason)
    return str(error) or type(error).__name__
