"""Secrets and ConfigMaps are never written over what somebody else wrote meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from api_server import NAMESPACE, ApiServer

from atelier.errors import AtelierError
from atelier.kubernetes.objects import Changed, Found, Kind, Objects


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer().running() as api:
        yield api


def run(api: ApiServer) -> Objects:
    """One of several hooks."""
    return Objects(api.core(), namespace=NAMESPACE, labels={"a": "b"})


def found(objects: Objects, kind: Kind, name: str) -> Found:
    one = objects.read(kind, name)
    assert one is not None
    return one


@pytest.mark.parametrize("kind", ["Secret", "ConfigMap"])
def test_of_two_that_make_the_same_object_the_second_is_told(api: ApiServer, kind: Kind) -> None:
    first, second = run(api), run(api)
    assert first.read(kind, "one") is None and second.read(kind, "one") is None
    first.make(kind, "one", {"token": b"first"})
    with pytest.raises(Changed):
        second.make(kind, "one", {"token": b"second"})
    assert found(second, kind, "one").data == {"token": b"first"}


@pytest.mark.parametrize("kind", ["Secret", "ConfigMap"])
def test_what_has_changed_since_it_was_read_is_not_completed(api: ApiServer, kind: Kind) -> None:
    first, second = run(api), run(api)
    first.make(kind, "one", {"a": b"1"})
    seen = found(second, kind, "one")
    first.complete(kind, "one", {"b": b"first"}, version=seen.version)
    with pytest.raises(Changed):
        second.complete(kind, "one", {"b": b"second"}, version=seen.version)
    second.complete(kind, "one", {"a": None, "c": b"\n3"}, version=found(second, kind, "one").version)
    assert found(first, kind, "one").data == {"b": b"first", "c": b"\n3"}


def test_what_is_gone_is_looked_for_again(api: ApiServer) -> None:
    objects = run(api)
    objects.make("Secret", "one", {"a": b"1"})
    seen = found(objects, "Secret", "one")
    api.remove("secrets", "one")
    with pytest.raises(Changed):
        objects.complete("Secret", "one", {"a": b"2"}, version=seen.version)


def test_a_namespace_that_is_not_there_is_told(api: ApiServer) -> None:
    api.refusals["PATCH secrets"] = (404, 'namespaces "studio" not found')
    with pytest.raises(AtelierError, match='refuses Secret one: namespaces "studio" not found'):
        run(api).make("Secret", "one", {"a": b"1"})
