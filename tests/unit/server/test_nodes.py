"""How many nodes a pool shall have."""

from __future__ import annotations

from typing import Any

import pytest

from atelier.server.nodes import ApplicationState, PoolNode, ServeState, nodes_wanted

READY, STARTING = PoolNode(name="a", address="10.0.0.1", ready=True), PoolNode(name="b", address="10.0.0.2")
PENDING = PoolNode(name="c")


def running(target: int, replicas: int = 0, status: str = "RUNNING") -> ApplicationState:
    return ApplicationState(status=status, built=True, target=target, replicas=replicas)


@pytest.mark.parametrize(
    ("why", "state", "nodes", "busy", "wanted"),
    [
        ("nobody knows the application: it is built on one", None, [], [], 1),
        ("it is being built", ApplicationState(status="DEPLOYING"), [], [], 1),
        ("it is being built, after another Ray: what is there stays", ApplicationState(status="DEPLOYING"), [READY, READY], [], 2),
        ("at zero, and may have to be built anew", running(0, status="DEPLOYING"), [], [], 1),
        ("at zero", running(0), [], [], 0),
        ("at zero, and the node is not needed any more", running(0), [STARTING], [], 0),
        ("at zero, and a proxy on the node may have calls", running(0), [STARTING], ["10.0.0.2"], 1),
        ("more are asked for", running(3, 1), [READY], ["10.0.0.1"], 3),
        ("fewer are asked for, and all are ready still", running(1, 2), [READY, READY], ["10.0.0.1"], 2),
        ("fewer are asked for, and one has stopped", running(1, 1), [READY, STARTING], ["10.0.0.1"], 1),
        ("fewer are asked for, and one is just stopping", running(1, 2), [READY, STARTING], ["10.0.0.1", "10.0.0.2"], 2),
        ("fewer are asked for, and one waits for a machine", running(1, 1), [READY, PENDING], ["10.0.0.1"], 1),
        ("one that stops may be taken for one that never started", running(1, 1), [READY, STARTING, PENDING], ["10.0.0.2"], 3),
        ("a replica that is not ready for a moment is no reason to take its node", running(1, 1), [STARTING, PENDING], ["10.0.0.2"], 2),
    ],
)
def test_nodes_follow_replicas(why: str, state: Any, nodes: list[PoolNode], busy: list[str], wanted: int) -> None:
    assert nodes_wanted(state, nodes, busy=busy, least=0, most=4) == wanted, why


def test_a_minimum_is_there_before_there_is_an_application() -> None:
    assert nodes_wanted(None, [], busy=[], least=2, most=4) == 2


def test_a_pool_that_has_given_its_device_up_keeps_no_node_but_for_running_calls() -> None:
    assert nodes_wanted(None, [STARTING], busy=[], least=0, most=0) == 0
    assert nodes_wanted(None, [STARTING], busy=["10.0.0.2"], least=0, most=0) == 1


def test_serves_answer_is_read() -> None:
    replicas = [{"state": "RUNNING", "node_ip": "10.0.0.1"}, {"state": "STARTING"}]
    content = {
        "proxies": {"x": {"node_ip": "10.0.0.2", "status": "DRAINING"}},
        "applications": {
            "cpu": {
                "status": "RUNNING",
                "message": "m",
                "deployments": {"Replica": {"target_num_replicas": 2, "replicas": replicas}},
            },
            "new": {"status": "DEPLOYING", "deployments": {}},
        },
    }
    found = ServeState.read(content)
    assert found.applications["cpu"] == ApplicationState(status="RUNNING", message="m", built=True, target=2, replicas=2)
    assert found.applications["new"] == ApplicationState(status="DEPLOYING")
    assert found.busy == {"10.0.0.1", "10.0.0.2"}
    assert ServeState.read({}).applications == {}
