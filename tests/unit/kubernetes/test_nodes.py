"""Pods as nodes of pools, by the real client, before something that plays the API server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from kubernetes import client

from atelier.kubernetes import watching
from atelier.kubernetes.nodes import PodNodes
from atelier.server.nodes import PoolNode

DEPLOYMENT = "atelier-pool-fast"


class FakeApi:
    """Lists and watches pods and events, and takes scales. `gone`: what is told, when it is watched, that its version is too old."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {"pods": {}, "events": {}}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.scaled: list[tuple[str, Any]] = []
        self.status, self.gone = 200, set[str]()
        self._changes: list[tuple[str, str, Any]] = []
        self._changed = threading.Condition()

    def put(self, kind: str, content: Any) -> None:
        with self._changed:
            known = content["metadata"]["name"] in self.objects[kind]
            self.objects[kind][content["metadata"]["name"]] = content
            self._note(kind, "MODIFIED" if known else "ADDED", content)

    def delete(self, kind: str, name: str) -> None:
        with self._changed:
            self._note(kind, "DELETED", self.objects[kind].pop(name))

    def _note(self, kind: str, event: str, content: Any) -> None:
        content["metadata"]["resourceVersion"] = str(len(self._changes) + 1)
        self._changes.append((kind, event, content))
        self._changed.notify_all()

    def listed(self, kind: str) -> Any:
        with self._changed:
            return {"kind": "List", "metadata": {"resourceVersion": str(len(self._changes))}, "items": list(self.objects[kind].values())}

    def changes(self, kind: str, version: int, ended: Callable[[], bool]) -> Iterator[Any]:
        while not ended():
            with self._changed:
                if kind in self.gone:
                    self.gone.remove(kind)
                    yield {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}
                    return
                if version >= len(self._changes):
                    self._changed.wait(0.05)
                    continue
                of, event, content = self._changes[version]
            version += 1
            if of == kind:
                yield {"type": event, "object": content}


class Handler(BaseHTTPRequestHandler):
    api: FakeApi
    stopped: threading.Event

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        kind = address.path.rpartition("/")[2]
        self.api.asked.append((kind, query))
        if self.api.status != 200 or "watch" not in query:
            self._answer(self.api.listed(kind))
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for change in self.api.changes(kind, int(query["resourceVersion"]), self.stopped.is_set):
            line = json.dumps(change).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def do_PATCH(self) -> None:
        self.api.scaled.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self._answer({"kind": "Scale"})

    def _answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(self.api.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@contextmanager
def served(api: FakeApi) -> Iterator[client.CoreV1Api]:
    stopped = threading.Event()
    handler = type("Bound", (Handler,), {"api": api, "stopped": stopped})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.block_on_close = False  # a connection that is kept open would hold it
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield client.CoreV1Api(client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{server.server_address[1]}")))
    stopped.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def nodes(api: FakeApi) -> Iterator[PodNodes]:
    with served(api) as core:
        nodes = PodNodes(core, namespace="ml", pools={"fast": DEPLOYMENT, "others": ""})
        with nodes.running(lambda: None):
            until(lambda: nodes.of("fast") is not None)
            yield nodes


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def pod(
    name: str, *, ready: bool = False, pool: str = "fast", owner: tuple[str, str] = ("ReplicaSet", f"{DEPLOYMENT}-5f"), **fields: Any
) -> Any:
    kind, owned_by = owner
    status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": str(ready)}], **fields}
    owners = [{"apiVersion": "apps/v1", "kind": kind, "name": owned_by, "uid": "u"}]
    return {"metadata": {"name": name, "labels": {"atelier.dev/pool": pool}, "ownerReferences": owners}, "status": status}


def waits(reason: str, message: str = "") -> Any:
    """Status of a container that waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": "c", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}


def warning(of: str, message: str, *, kind: str = "Pod", reason: str = "FailedMount", ago: timedelta = timedelta()) -> Any:
    moment = (datetime.now(UTC) - ago).isoformat()
    involved = {"kind": kind, "name": of}
    return {"metadata": {"name": f"{of}.1"}, "involvedObject": involved, "reason": reason, "message": message, "lastTimestamp": moment}


def test_pods_of_the_pools_deployment_are_its_nodes(api: FakeApi, nodes: PodNodes) -> None:
    api.put("pods", pod("b", ready=True))
    api.put("pods", pod("of-another-release", owner=("ReplicaSet", "other-pool-fast-5f")))
    api.put("pods", pod("of-a-longer-name", owner=("ReplicaSet", f"{DEPLOYMENT}-er-5f")))
    api.put("pods", pod("a-worker", owner=("Job", "atelier-train-1")))
    api.put("pods", pod("a"))
    until(lambda: len(nodes.of("fast") or ()) == 2)
    assert nodes.of("fast") == [
        PoolNode(name="a", address="10.0.0.1", reason="no replica on it answers yet"),
        PoolNode(name="b", address="10.0.0.1", ready=True),
    ]
    assert nodes.of("unknown") is None
    until(lambda: {kind for kind, _ in api.asked} == {"pods", "events"})
    kinds = dict(api.asked)
    assert kinds["pods"]["labelSelector"] == "atelier.dev/pool in (fast, others)" and kinds["events"]["fieldSelector"] == "type=Warning"


def test_nodes_that_kuberay_makes_are_told_too(api: FakeApi, nodes: PodNodes) -> None:
    api.put("pods", pod("ray", pool="others", owner=("RayCluster", "atelier")))
    until(lambda: bool(nodes.of("others")))


def test_one_that_is_being_ended_counts_no_more(api: FakeApi, nodes: PodNodes) -> None:
    api.put("pods", pod("a"))
    until(lambda: bool(nodes.of("fast")))
    ending = pod("a")
    ending["metadata"]["deletionTimestamp"] = datetime.now(UTC).isoformat()
    api.put("pods", ending)
    until(lambda: not nodes.of("fast"))
    api.put("pods", pod("b"))
    until(lambda: bool(nodes.of("fast")))
    api.delete("pods", "b")
    until(lambda: not nodes.of("fast"))


NO_ROOM = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
PENDING = {"phase": "Pending", "podIP": None}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"conditions": [{"type": "PodScheduled", "status": "False", "message": NO_ROOM}], **PENDING}, NO_ROOM),
        ({"containerStatuses": [waits("ImagePullBackOff", "no such image")], **PENDING}, "ImagePullBackOff: no such image"),
        ({"initContainerStatuses": [waits("PodInitializing")], **PENDING}, "starts"),
        ({"message": "the node had too little memory", "phase": "Failed"}, "the node had too little memory"),
    ],
)  # fmt: skip
def test_what_a_node_waits_for_is_told(api: FakeApi, nodes: PodNodes, fields: dict[str, Any], reason: str) -> None:
    api.put("pods", pod("a", **fields))
    until(lambda: bool(nodes.of("fast")))
    assert [node.reason for node in nodes.of("fast") or ()] == [reason]


def test_warnings_of_the_last_minutes_tell_what_the_pod_itself_does_not(api: FakeApi, nodes: PodNodes) -> None:
    api.put("pods", pod("a", **PENDING))
    api.put("events", warning("a", "no such ConfigMap", ago=timedelta(hours=1)))
    until(lambda: bool(nodes.of("fast")))
    assert [node.reason for node in nodes.of("fast") or ()] == ["starts"]
    api.put("events", warning("a", "no such ConfigMap"))
    until(lambda: [node.reason for node in nodes.of("fast") or ()] == ["FailedMount: no such ConfigMap"])


def test_pods_that_a_quota_keeps_from_being_made_are_told(api: FakeApi, nodes: PodNodes) -> None:
    message = 'Error creating: pods "atelier-pool-fast-5f-abcde" is forbidden: exceeded quota: few'
    api.put("events", warning(f"{DEPLOYMENT}-5f", message, kind="ReplicaSet", reason="FailedCreate"))
    until(lambda: nodes.trouble("fast") == "exceeded quota: few")
    assert nodes.trouble("others") == ""


def test_pods_that_kuberay_may_not_make_are_told(api: FakeApi, nodes: PodNodes) -> None:
    message = 'Failed to create worker Pod for the cluster ml/atelier, pods "atelier-others-worker-abcde" is forbidden: exceeded quota: few'
    api.put("events", warning("atelier", message, kind="RayCluster", reason="FailedToCreateWorkerPod"))
    until(lambda: nodes.trouble("others") == "exceeded quota: few")
    assert nodes.trouble("fast") == ""


def test_a_deployment_is_scaled_by_its_subresource_and_a_refusal_is_an_os_error(api: FakeApi, nodes: PodNodes) -> None:
    nodes.scale("fast", 2)
    assert api.scaled == [(f"/apis/apps/v1/namespaces/ml/deployments/{DEPLOYMENT}/scale", {"spec": {"replicas": 2}})]
    api.status = 403
    with pytest.raises(OSError, match="403"):
        nodes.scale("fast", 3)


def test_a_watch_that_is_too_old_begins_anew(api: FakeApi, nodes: PodNodes) -> None:
    api.gone = {"pods"}
    until(lambda: not api.gone)
    api.put("pods", pod("a"))
    until(lambda: bool(nodes.of("fast")))


def test_an_api_server_that_is_away_is_asked_again_and_what_it_said_last_stays(
    api: FakeApi, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "FIRST_PAUSE_SECONDS", 0.05)
    api.put("pods", pod("a"))
    with served(api) as core:
        nodes = PodNodes(core, namespace="ml", pools={"fast": DEPLOYMENT})
        with nodes.running(lambda: None):
            until(lambda: bool(nodes.of("fast")))
            api.status, api.gone = 503, {"pods"}
            until(lambda: len([kind for kind, _ in api.asked if kind == "pods"]) > 5)
            assert nodes.of("fast")
            api.delete("pods", "a")
            api.status = 200
            until(lambda: not nodes.of("fast"))
    assert sum("503" in record.message for record in caplog.records) <= 2, "each trouble once"


def test_nothing_is_known_before_the_first_answer(api: FakeApi) -> None:
    api.status = 403
    with served(api) as core:
        nodes = PodNodes(core, namespace="ml", pools={"fast": DEPLOYMENT})
        with nodes.running(lambda: None):
            until(lambda: bool(api.asked))
            assert nodes.of("fast") is None
