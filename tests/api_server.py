"""An API server in miniature, over HTTP; what controllers and kubelets do, tests do themselves: `put`, `change`, `remove`."""

from __future__ import annotations

import copy
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client
from patches import Patching

from atelier.kubernetes.worker_pods import OF_JOB

NAMESPACE = "test"
CORE = {"pods": "Pod", "events": "Event", "configmaps": "ConfigMap", "secrets": "Secret"}
KINDS = {"jobs": ("batch/v1", "Job"), **{kind: ("v1", name) for kind, name in CORE.items()}}
PATH = re.compile(rf"/(?:api/v1|apis/batch/v1)/namespaces/{NAMESPACE}/(?P<kind>\w+)(?:/(?P<name>[\w.-]+))?(?P<log>/log)?")
TIME = "2026-11-25T10:00:00Z"


@dataclass
class ApiServer:
    """`requests` are all that came, as `GET jobs`, `WATCH pods`, `DELETE jobs/name`."""

    port: int = 0
    objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    logs: dict[str, str] = field(default_factory=dict)
    """By the name of the pod."""
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Request, as in `requests` but without the name -> what is answered instead."""
    keeps: bool = False
    """Whether deleted Jobs stay, marked, until `remove`: their pods take their time."""
    requests: list[str] = field(default_factory=list)
    version: int = 100
    history: list[tuple[int, str, str, dict[str, Any]]] = field(default_factory=list)
    forgotten: int = 0
    """A watch from before this version is answered 410."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    closing: bool = False

    def core(self) -> client.CoreV1Api:
        """A client of it."""
        settings = client.Configuration(host=f"http://127.0.0.1:{self.port}")
        settings.retries = False
        return client.CoreV1Api(client.ApiClient(settings))

    @contextmanager
    def running(self) -> Iterator[ApiServer]:
        """Answers until the block ends; then connections break. May be entered again, at the same address."""
        handler = type("Handler", (_Handler,), {"api": self})
        self.closing = False
        server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            with self.changed:
                self.closing = True
                self.changed.notify_all()
            server.shutdown()
            server.server_close()

    def put(self, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Makes an object, or writes it anew."""
        with self.changed:
            made = copy.deepcopy(dict(content))
            made["apiVersion"], made["kind"] = KINDS[kind]
            metadata = made["metadata"]
            event = "MODIFIED" if metadata["name"] in self.objects[kind] else "ADDED"
            metadata.setdefault("creationTimestamp", TIME)
            metadata.setdefault("uid", f"uid-{metadata['name']}")
            made.setdefault("status", {})
            return self._record(kind, event, made)

    def change(self, kind: str, name: str, **parts: Any) -> None:
        """Sets parts of an object, such as its status."""
        self.put(kind, {**self.objects[kind][name], **parts})

    def remove(self, kind: str, name: str) -> None:
        """It is gone; with a Job its pods."""
        with self.changed:
            self._record(kind, "DELETED", self.objects[kind].pop(name))
            if kind == "jobs":
                for pod in [pod for pod in self.objects["pods"].values() if pod["metadata"]["labels"].get(OF_JOB) == name]:
                    self.remove("pods", pod["metadata"]["name"])

    def forget(self) -> None:
        """Watches can no longer go on from where they were; those that run are told so."""
        with self.changed:
            self.version += 1
            self.forgotten = self.version
            self.changed.notify_all()

    def _record(self, kind: str, event: str, one: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        one["metadata"]["resourceVersion"] = str(self.version)
        if event != "DELETED":
            self.objects[kind][one["metadata"]["name"]] = one
        self.history.append((self.version, kind, event, copy.deepcopy(one)))
        self.changed.notify_all()
        return one


class _Handler(Patching, BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        """One whose connection was left is no trouble."""
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def do_GET(self) -> None:
        kind, name, log, query = self._asked()
        if query.get("watch"):
            if self._begin("WATCH", kind):
                self._watch(kind, query)
        elif self._begin("LOG" if log else "GET", kind, name):
            if log:
                self._send(self.api.logs.get(name, "").encode(), "text/plain", 200)
            elif name:
                found = self.api.objects[kind].get(name)
                self._json(found) if found else self._status(404, f"{name} not found")
            else:
                self._list(kind, query)

    def do_POST(self) -> None:
        kind, *_ = self._asked()
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._begin("POST", kind):
            return
        with self.api.changed:
            if content["metadata"]["name"] in self.api.objects[kind]:
                self._status(409, f"{content['metadata']['name']} already exists")
            else:
                self._json(self.api.put(kind, content), 201)

    def do_DELETE(self) -> None:
        kind, name, _, query = self._asked()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._begin("DELETE", kind, name):
            return
        with self.api.changed:
            if name not in self.api.objects[kind]:
                self._status(404, f"{name} not found")
                return
            assert query["propagationPolicy"] == "Foreground"
            one = self.api.objects[kind][name]
            self._json(one)
            if self.api.keeps:
                self.api.change(kind, name, metadata={**one["metadata"], "deletionTimestamp": TIME})
            else:
                self.api.remove(kind, name)

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""

    def _asked(self) -> tuple[str, str, bool, dict[str, str]]:
        parts = urlsplit(self.path)
        match = PATH.fullmatch(parts.path)
        assert match, self.path
        return match["kind"], match["name"] or "", bool(match["log"]), {name: values[-1] for name, values in parse_qs(parts.query).items()}

    def _begin(self, verb: str, kind: str, name: str = "") -> bool:
        """Whether it is answered as it should."""
        with self.api.changed:
            if self.api.closing:  # a connection from before
                raise ConnectionAbortedError
            self.api.requests.append(f"{verb} {kind}" + (f"/{name}" if name else ""))
            refusal = self.api.refusals.get(f"{verb} {kind}")
        if refusal:
            self._status(*refusal)
        return not refusal

    def _list(self, kind: str, query: Mapping[str, str]) -> None:
        with self.api.changed:
            items = [one for one in self.api.objects[kind].values() if _selected(one, query)]
            version, name = KINDS[kind]
            metadata = {"resourceVersion": str(self.api.version)}
            self._json({"apiVersion": version, "kind": f"{name}List", "metadata": metadata, "items": items})

    def _watch(self, kind: str, query: Mapping[str, str]) -> None:
        at = at_start = int(query["resourceVersion"])
        end = time.monotonic() + int(query["timeoutSeconds"])
        if at < self.api.forgotten:
            self._status(410, "too old resource version")
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while time.monotonic() < end:
            with self.api.changed:
                news = [(event, one) for version, of, event, one in self.api.history if version > at and of == kind]
                if not news and not self.api.closing and at >= self.api.forgotten:
                    self.api.changed.wait(timeout=0.5)
                    continue
                if self.api.closing:
                    self.close_connection = True
                    return
                at = max(at, self.api.version)
                news = [(event, one) for event, one in news if _selected(one, query)]
                if at_start < self.api.forgotten:
                    news = [("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})]
            for event, one in news:
                self._chunk(json.dumps({"type": event, "object": one}) + "\n")
            if any(event == "ERROR" for event, _ in news):
                break
        self._chunk("")

    def _chunk(self, content: str) -> None:
        self.wfile.write(f"{len(content.encode()):x}\r\n{content}\r\n".encode())

    def _status(self, code: int, message: str) -> None:
        self._json({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}, code)

    def _json(self, content: Any, code: int = 200) -> None:
        self._send(json.dumps(content).encode(), "application/json", code)

    def _send(self, content: bytes, kind: str, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _selected(one: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    """`a in (x, y), b, c=z` over labels, `type=Warning` over an event."""
    labels = one["metadata"].get("labels", {})
    for name, values in re.findall(r"([\w./-]+)(?: in \(([^)]*)\))?(?:, |$)", query.get("labelSelector", "")):
        wanted = [value for value in re.split(r", ?", values) if value]
        if name not in labels or (wanted and labels[name] not in wanted):
            return False
    return not query.get("fieldSelector") or query["fieldSelector"] == f"type={one.get('type')}"
