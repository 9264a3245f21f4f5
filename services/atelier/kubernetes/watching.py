"""Objects of the API server that a thread keeps current: listed once, then watched from there on."""

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
"""After which the watch is asked for again, from where it has come to."""
CONNECT_SECONDS, SILENCE_SECONDS = 5, WATCH_SECONDS + 15
"""A connection that ended without a word is noticed after the second."""
END_SECONDS = 2.0
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 1.0, 30.0
GONE = 410

logger = logging.getLogger("atelier.kubernetes")


class Watched:
    """The objects of a namespace that `listing` (`CoreV1Api.list_namespaced_pod`, say) gives for two selectors.

    An API server that is away is a line in the log and another try; until then the objects are those that it gave last. They are listed
    again only where it has forgotten what happened since (410), or answers with another error. `changed` is called from the thread.
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
        self._version = ""
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._watch = watch.Watch()  # type: ignore[no-untyped-call]
        self._said = ""
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def objects(self) -> tuple[Any, ...] | None:
        """The client's models of them, by name; None before they were listed for the first time."""
        with self._lock:
            return None if self._found is None else tuple(self._found[name] for name in sorted(self._found))

    @property
    def version(self) -> int:
        """The resource version that they have come to: what was made at one up to it and is not there is gone. 0 before the first list."""
        with self._lock:
            return int(self._version or 0)

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
        known = False
        while not self._stopped.is_set():
            try:
                if not known:
                    self._list()
                    known = True
                self._follow()
                self._hear()
            except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
                if isinstance(error, ApiException):
                    known = False
                    if error.status == GONE:
                        continue
                self._say(f"{self._listing.__name__} fails, and is tried again: {told(error)}")
                self._stopped.wait(self._pause)
                self._pause = min(2 * self._pause, LAST_PAUSE_SECONDS)
            except Exception:
                logger.exception("watching failed; trying again")
                known = False
                self._stopped.wait(LAST_PAUSE_SECONDS)

    def _list(self) -> None:
        answer = self._listing(self._namespace, **self._selectors, _request_timeout=(CONNECT_SECONDS, SILENCE_SECONDS))
        with self._lock:
            self._found = {one.metadata.name: one for one in answer.items}
            self._version = str(answer.metadata.resource_version)
        self._hear()
        self._changed()

    def _follow(self) -> None:
        timeouts = {"timeout_seconds": WATCH_SECONDS, "_request_timeout": (CONNECT_SECONDS, SILENCE_SECONDS)}
        stream = self._watch.stream(  # type: ignore[no-untyped-call]
            self._listing, self._namespace, **self._selectors, resource_version=self._version, allow_watch_bookmarks=True, **timeouts
        )
        for event in stream:
            if self._stopped.is_set():
                return
            self._hear()
            self._take(event["type"], event["object"])
            self._changed()

    def _take(self, kind: str, one: Any) -> None:
        with self._lock:
            assert self._found is not None
            if kind == "BOOKMARK":
                self._version = one["metadata"]["resourceVersion"]
                return
            self._version = one.metadata.resource_version
            if kind == "DELETED":
                self._found.pop(one.metadata.name, None)
            else:
                self._found[one.metadata.name] = one

    def _hear(self) -> None:
        self._say("")
        self._pause = FIRST_PAUSE_SECONDS

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
