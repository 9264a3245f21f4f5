"""TCP connections between pods as they are seen, beside the NetworkPolicies that would have to allow them.

The cluster's network enforces no policy, so connections are looked at: in each pod's network namespace, once a second. One that is shorter
than that may be missed; one that is seen was made.
"""

from __future__ import annotations

import ipaddress
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.kubectl import Kubectl
from cluster.place import Place

ESTABLISHED, LISTEN = "01", "0A"
EVERY_SECONDS = 1.0
EPHEMERAL = 32768
"""The first port that a caller's end gets: a server that stops has calls at a port that it no longer listens on."""


@dataclass(frozen=True, order=True)
class Connection:
    """From an address to a port of another, as the one who made it asked for it (so an address of a Service may stand in it)."""

    source: str
    target: str
    port: int


@dataclass(frozen=True)
class Rule:
    """One peer and port of a policy's rule, as words: what the report of unused ones names."""

    policy: str
    direction: str
    peer: str
    ports: str


@dataclass
class Seen:
    """What was seen until now; pods by address, with their labels, though some are gone by now."""

    connections: set[Connection] = field(default_factory=set)
    pods: dict[str, Mapping[str, str]] = field(default_factory=dict)
    services: dict[tuple[str, int], tuple[Mapping[str, str], int]] = field(default_factory=dict)
    """Address and port of a Service -> the labels that it selects, and the port of those pods."""


@contextmanager
def watched(kubectl: Kubectl, place: Place) -> Iterator[Seen]:
    """Looks until the block ends."""
    seen, stop = Seen(), threading.Event()

    def work() -> None:
        while not stop.wait(EVERY_SECONDS):
            _look_at_objects(kubectl, seen)
            for namespace in (place.run / "containerd" / "io.containerd.grpc.v1.cri" / "netns").glob("*"):
                seen.connections |= _connections(namespace)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def refused(seen: Seen, policies: Sequence[Mapping[str, Any]], used: set[Rule]) -> list[str]:
    """Connections between pods of the namespace that no policy allows; adds to `used` the rules that allow what was seen."""
    wrong = []
    for one in sorted(seen.connections):
        labels = seen.pods.get(one.source)
        if labels is None:  # the kubelet's probes and port-forwards come from the node, which no policy keeps out
            continue
        selected, port = seen.services.get((one.target, one.port), (None, one.port))
        peer = seen.pods.get(one.target) if selected is None else selected
        allowed = _allowed(policies, "egress", labels, peer, port, used)
        if peer is not None:
            allowed = allowed and _allowed(policies, "ingress", peer, labels, port, used)
        if not allowed:
            wrong.append(f"{_name(labels)} -> {_name(peer) if peer is not None else one.target}:{port}")
    return sorted(set(wrong))


def rules_of(policies: Sequence[Mapping[str, Any]]) -> set[Rule]:
    """All rules, a peer each."""
    return {
        _rule(policy, direction, rule, peer)
        for policy in policies
        for direction, word in (("egress", "to"), ("ingress", "from"))
        for rule in policy["spec"].get(direction, ())
        for peer in rule.get(word) or [None]
    }


def _allowed(
    policies: Sequence[Mapping[str, Any]],
    direction: str,
    own: Mapping[str, str],
    peer: Mapping[str, str] | None,
    port: int,
    used: set[Rule],
) -> bool:
    selecting = [p for p in policies if _matches(p["spec"]["podSelector"], own) and direction.capitalize() in p["spec"]["policyTypes"]]
    found = [
        _rule(policy, direction, rule, each)
        for policy in selecting
        for rule in policy["spec"].get(direction, ())
        if not rule.get("ports") or any(int(p["port"]) <= port <= int(p.get("endPort", p["port"])) for p in rule["ports"])
        for each in rule.get("to" if direction == "egress" else "from") or [None]
        if _is_peer(each, peer)
    ]
    used.update(found)
    return not selecting or bool(found)


def _is_peer(given: Mapping[str, Any] | None, peer: Mapping[str, str] | None) -> bool:
    if given is None or ("namespaceSelector" in given and not given["namespaceSelector"]):
        return True
    if "ipBlock" in given:
        return peer is None  # outside of the namespace; the test's addresses are in none of the exceptions
    return peer is not None and _matches(given["podSelector"], peer)


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, f"this test does not understand {selector}"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _rule(policy: Mapping[str, Any], direction: str, rule: Mapping[str, Any], peer: Mapping[str, Any] | None) -> Rule:
    ports = ",".join(f"{p['port']}" + (f"-{p['endPort']}" if "endPort" in p else "") for p in rule.get("ports", ()))
    if peer is None:
        name = "anyone"
    elif "podSelector" in peer:
        name = _name(peer["podSelector"].get("matchLabels", {}))
    else:
        name = "outside"
    return Rule(policy["metadata"]["name"], direction, name, ports)


def _name(labels: Mapping[str, str]) -> str:
    return "/".join(filter(None, [labels.get("app.kubernetes.io/component", "?"), labels.get("atelier.dev/service")]))


def _look_at_objects(kubectl: Kubectl, seen: Seen) -> None:
    for one in kubectl.get("pods,services")["items"]:
        if one["kind"] == "Pod" and one["status"].get("podIP"):
            seen.pods[one["status"]["podIP"]] = one["metadata"]["labels"]
        elif one["kind"] == "Service" and one["spec"].get("selector"):
            for port in one["spec"]["ports"]:
                target = port["targetPort"] if isinstance(port["targetPort"], int) else _named_port(kubectl, one, port["targetPort"])
                seen.services[one["spec"]["clusterIP"], port["port"]] = (one["spec"]["selector"], target)


def _named_port(kubectl: Kubectl, service: Mapping[str, Any], name: str) -> int:
    selector = ",".join(f"{key}={value}" for key, value in service["spec"]["selector"].items())
    ports = {
        port["name"]: port["containerPort"]
        for pod in kubectl.get("pods", "-l", selector)["items"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", ())
    }
    return int(ports.get(name, 0))


def _connections(namespace: Path) -> set[Connection]:
    """Those that were made from inside of a pod: their own end is at no port that is listened on."""
    command = ["nsenter", f"--net={namespace}", "cat", "/proc/net/tcp", "/proc/net/tcp6"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    rows = [(_end(words[1]), _end(words[2]), words[3]) for words in map(str.split, lines) if words and words[0] != "sl"]
    listened = {own[1] for own, _, state in rows if state == LISTEN}
    return {
        Connection(own[0], other[0], other[1])
        for own, other, state in rows
        if state == ESTABLISHED and other[1] < EPHEMERAL and own[1] not in listened and own[0] != other[0]
    }


def _end(word: str) -> tuple[str, int]:
    """`0100007F:1F90` -> (`127.0.0.1`, 8080); of an address of version 6 that holds one of version 4, that one."""
    address, _, port = word.partition(":")
    packed = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    found = ipaddress.ip_address(packed)
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found), int(port, 16)
