"""What the API server in miniature makes of a PATCH: server-side apply and merge patch of Secrets and ConfigMaps."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


class Conflict(Exception):
    """409."""


class Patching:
    """The part of the server's handler."""

    def do_PATCH(self: Any) -> None:
        kind, name, _, query = self._asked()
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._begin("PATCH", kind, name):
            return
        with self.api.changed:
            try:
                made = patched(self.api.objects[kind].get(name), content, self.headers["Content-Type"], query.get("fieldManager", ""))
                self._json(self.api.put(kind, made)) if made else self._status(404, f"{name} not found")
            except Conflict:
                self._status(409, f"{name} has been modified")


def patched(found: Mapping[str, Any] | None, body: Mapping[str, Any], content_type: str, manager: str) -> dict[str, Any] | None:
    """The object as it is then; None where a merge patch finds none. Raises Conflict."""
    if content_type == APPLY:
        return _applied(copy.deepcopy(dict(found)) if found else None, body, manager)
    assert content_type == MERGE, content_type
    if found is None:
        return None
    made = copy.deepcopy(dict(found))
    if body["metadata"].get("resourceVersion", found["metadata"]["resourceVersion"]) != found["metadata"]["resourceVersion"]:
        raise Conflict
    data = {**made.get("data", {}), **body["data"]}
    return {**made, "data": {key: value for key, value in data.items() if value is not None}}


def _applied(found: dict[str, Any] | None, body: Mapping[str, Any], manager: str) -> dict[str, Any]:
    """Fields that another manager has set differently are a conflict."""
    made = found or {"metadata": {"name": body["metadata"]["name"]}, "data": {}}
    managers = made["metadata"].setdefault("managedFields", [])
    own = next((one for one in managers if one["manager"] == manager), None)
    mine = set(own["fieldsV1"]["f:data"]) if own else set()
    data = made.setdefault("data", {})
    if any(key in data and data[key] != value and f"f:{key}" not in mine for key, value in body["data"].items()):
        raise Conflict
    data |= body["data"]
    made["metadata"]["labels"] = {**made["metadata"].get("labels", {}), **body["metadata"].get("labels", {})}
    made.setdefault("type", body.get("type", "Opaque"))
    fields = {"f:data": {f"f:{key}": {} for key in data}}
    managers[:] = [one for one in managers if one is not own] + [{"manager": manager, "operation": "Apply", "fieldsV1": fields}]
    return made
