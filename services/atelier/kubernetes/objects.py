"""Secrets and ConfigMaps of one namespace: read, made, and completed without a change to what others wrote.

Objects are made by server-side apply: unlike a POST it carries the object's name to RBAC, so that a Role can name all that may be made.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from atelier.errors import AtelierError, Status, failed_precondition, unavailable

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Mounted into pods by Kubernetes."""
TIMEOUT_SECONDS = 30

Kind = Literal["Secret", "ConfigMap"]


class Changed(Exception):
    """Somebody wrote the object meanwhile: look again."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """An object's content, and which version of it that is."""

    data: Mapping[str, bytes]
    version: str


class Objects:
    """`labels` are given to what is made here."""

    def __init__(self, api: client.CoreV1Api, *, namespace: str, labels: Mapping[str, str]) -> None:
        self._api = api
        self._namespace = namespace
        self._labels = dict(labels)
        # One of its own a run: of two that make the same object, the second is told so instead of writing over the first.
        self._manager = f"atelier-{secrets.token_hex(4)}"

    def read(self, kind: Kind, name: str) -> Found | None:
        """None where there is none. Raises PERMISSION_DENIED and UNAVAILABLE."""
        read = self._api.read_namespaced_secret if kind == "Secret" else self._api.read_namespaced_config_map
        try:
            found: Any = read(name, self._namespace, _request_timeout=TIMEOUT_SECONDS)
        except ApiException as error:
            if error.status == 404:
                return None
            raise _told(error, kind, name) from None
        except urllib3.exceptions.HTTPError as error:
            raise unavailable("API_SERVER", f"the API server cannot be reached: {error}") from None
        data = {key: _read(kind, value) for key, value in (found.data or {}).items()}
        return Found(data=data, version=found.metadata.resource_version)

    def make(self, kind: Kind, name: str, data: Mapping[str, bytes | None], *, of_type: str = "") -> None:
        """Raises Changed where there is one already, PERMISSION_DENIED and UNAVAILABLE."""
        content: dict[str, Any] = {"type": of_type} if of_type else {}
        metadata = {"name": name, "labels": self._labels}
        there = {key: value for key, value in data.items() if value is not None}
        self._patch(kind, name, metadata, there, content, content_type="application/apply-patch+yaml", field_manager=self._manager)

    def complete(self, kind: Kind, name: str, data: Mapping[str, bytes | None], *, version: str) -> None:
        """Sets keys (None: removes them) of an object that is as it was found.

        Raises Changed where it is not, PERMISSION_DENIED and UNAVAILABLE.
        """
        self._patch(kind, name, {"resourceVersion": version}, data, {}, content_type="application/merge-patch+json")

    def _patch(
        self, kind: Kind, name: str, metadata: Mapping[str, Any], data: Mapping[str, bytes | None], more: Mapping[str, Any],
        *, content_type: str, **options: Any,
    ) -> None:  # fmt: skip
        patch: Any = self._api.patch_namespaced_secret if kind == "Secret" else self._api.patch_namespaced_config_map
        written = {key: None if value is None else _written(kind, value) for key, value in data.items()}
        body = {"apiVersion": "v1", "kind": kind, "metadata": metadata, "data": written, **more}
        try:
            patch(name, self._namespace, body, _content_type=content_type, _request_timeout=TIMEOUT_SECONDS, **options)
        except ApiException as error:
            if error.status == 409 or (error.status == 404 and "resourceVersion" in metadata):
                raise Changed from None
            raise _told(error, kind, name) from None
        except urllib3.exceptions.HTTPError as error:
            raise unavailable("API_SERVER", f"the API server cannot be reached: {error}") from None


def core() -> tuple[client.CoreV1Api, str]:
    """The API server and the namespace of this pod's account, or those of KUBECONFIG. Raises FAILED_PRECONDITION where there is neither."""
    settings = client.Configuration()
    try:
        if files := os.environ.get("KUBECONFIG"):  # now: the client itself looks once, when it is imported
            config.load_kube_config(files, client_configuration=settings)  # type: ignore[no-untyped-call]
            namespace = config.list_kube_config_contexts(files)[1]["context"].get("namespace", "default")  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
            namespace = (ACCOUNT / "namespace").read_text().strip()
    except (config.ConfigException, OSError) as error:
        raise failed_precondition("NO_CLUSTER", f"there is no API server to ask, neither from a pod nor by KUBECONFIG: {error}") from None
    return client.CoreV1Api(client.ApiClient(settings)), namespace


def _told(error: ApiException, kind: Kind, name: str) -> AtelierError:
    """The API server's refusal in one sentence; its messages name fields and rights, never the content of a Secret."""
    try:
        message = json.loads(error.body or "{}").get("message") or error.reason
    except ValueError:
        message = error.reason
    if error.status in (401, 403):
        sentence = f"the API server refuses {kind} {name} to this account, its Role must allow get, create and patch: {message}"
        return AtelierError(Status.PERMISSION_DENIED, "ROLE", sentence)
    if error.status == 0 or error.status >= 500 or error.status == 429:
        return unavailable("API_SERVER", f"the API server cannot answer for {kind} {name} now: {message}")
    return failed_precondition("API_SERVER", f"the API server refuses {kind} {name}: {message}")


def _read(kind: Kind, value: str) -> bytes:
    return base64.b64decode(value) if kind == "Secret" else value.encode()


def _written(kind: Kind, value: bytes) -> str:
    return base64.b64encode(value).decode() if kind == "Secret" else value.decode()
