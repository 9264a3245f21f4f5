"""The pool that a request names."""

from __future__ import annotations

from collections.abc import Iterable


def choose(name: str, there: Iterable[str]) -> tuple[str, str]:
    """The id behind `pools/{id}`, or behind nothing where there is one pool; and what is wrong, empty when nothing is."""
    names = sorted(there)
    listed = ", ".join(f"pools/{pool}" for pool in names) or "none"
    if not name:
        return (names[0], "") if len(names) == 1 else ("", f"must be set where there is not exactly one; there are: {listed}")
    pool = name.removeprefix("pools/")
    return (pool, "") if pool in names and name.startswith("pools/") else ("", f"there is no {name!r}; there are: {listed}")
