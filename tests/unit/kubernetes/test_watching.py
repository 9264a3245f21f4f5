"""Objects are listed once and followed from there on, whatever the API server does meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from api_server import NAMESPACE, ApiServer

from atelier.kubernetes import watching
from atelier.kubernetes.watching import Watched


def pod(name: str, phase: str = "Pending", **labels: str) -> dict[str, object]:
    return {"metadata": {"name": name, "labels": {"ours": "yes", **labels}}, "spec": {"containers": []}, "status": {"phase": phase}}


def watched(api: ApiServer) -> Watched:
    return Watched(api.core().list_namespaced_pod, namespace=NAMESPACE, label_selector="ours")


def phases(found: Watched) -> dict[str, str] | None:
    return None if found.objects is None else {one.metadata.name: one.status.phase for one in found.objects}


def eventually(holds: Callable[[], bool], *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_they_are_listed_once_and_then_followed() -> None:
    with ApiServer().running() as api:
        api.put("pods", pod("a"))
        api.put("pods", {"metadata": {"name": "foreign", "labels": {}}, "spec": {"containers": []}})
        found = watched(api)
        assert found.objects is None and found.version == 0
        with found.running():
            eventually(lambda: phases(found) == {"a": "Pending"})
            api.put("pods", pod("b"))
            api.change("pods", "a", status={"phase": "Running"})
            eventually(lambda: phases(found) == {"a": "Running", "b": "Pending"})
            api.remove("pods", "a")
            eventually(lambda: phases(found) == {"b": "Pending"})
            assert found.version == api.version
        assert api.requests == ["GET pods", "WATCH pods"]


def test_a_watch_that_the_server_has_ended_goes_on_from_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WATCH_SECONDS", 1)
    with ApiServer().running() as api:
        found = watched(api)
        with found.running():
            eventually(lambda: api.requests.count("WATCH pods") == 2)
            api.put("pods", pod("a"))
            eventually(lambda: phases(found) == {"a": "Pending"})
        assert api.requests.count("GET pods") == 1


def test_what_the_server_has_forgotten_is_listed_again() -> None:
    with ApiServer().running() as api:
        found = watched(api)
        with found.running():
            eventually(lambda: "WATCH pods" in api.requests)
            api.forget()
            api.put("pods", pod("a"))
            eventually(lambda: phases(found) == {"a": "Pending"})
        assert api.requests[:4] == ["GET pods", "WATCH pods", "GET pods", "WATCH pods"]


def test_a_server_that_is_away_leaves_them_as_they_were_and_is_followed_on_when_it_is_back() -> None:
    api = ApiServer()
    with api.running():
        api.put("pods", pod("a"))
    found = watched(api)
    with found.running():
        assert found.objects is None
        with api.running():
            eventually(lambda: phases(found) == {"a": "Pending"})
        api.remove("pods", "a")
        time.sleep(0.3)
        assert phases(found) == {"a": "Pending"}
        with api.running():
            eventually(lambda: phases(found) == {})
    assert api.requests.count("GET pods") == 1


def test_a_server_that_refuses_is_asked_again() -> None:
    with ApiServer().running() as api:
        api.refusals["WATCH pods"] = (500, "etcd is away")
        found = watched(api)
        with found.running():
            eventually(lambda: "WATCH pods" in api.requests)
            api.refusals.clear()
            api.put("pods", pod("a"))
            eventually(lambda: phases(found) == {"a": "Pending"})


def test_the_thread_ends_with_the_block() -> None:
    with ApiServer().running() as api:
        with watched(api).running():
            eventually(lambda: "WATCH pods" in api.requests)
            began = time.monotonic()
        assert time.monotonic() - began < 1
        eventually(lambda: not any(thread.name == "watch ours" for thread in threading.enumerate()))
