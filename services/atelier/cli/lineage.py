"""From an endpoint back to the pictures, as a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from rich.tree import Tree

from atelier.client.artifact_service import kind_of
from atelier.client.client import Client
from atelier.client.deployment_service import full_name
from atelier.errors import AtelierError, Status
from atelier.v1 import artifact_pb2, server_pb2

Get = Callable[[str], artifact_pb2.Artifact]


@dataclass(frozen=True, kw_only=True)
class Node:
    """Something, the role it plays for what stands above it, and what it was made from."""

    role: str
    name: str
    kind: str
    facts: str = ""
    made_from: tuple[Node, ...] = ()
    repeated: bool = False
    """Whether it stands in the tree already, with what it was made from."""

    def as_json(self) -> dict[str, Any]:
        """The tree for programs."""
        content: dict[str, Any] = {"name": self.name, "kind": self.kind, "role": self.role, "facts": self.facts}
        return content | {"made_from": [node.as_json() for node in self.made_from]}


def lineage_of(client: Client, name: str) -> Node:
    """The tree of a deployment, else of an artifact. Raises NOT_FOUND."""
    deployment = _deployment(client, name)
    if deployment is None:
        return artifact_node(client.artifacts.get(name), "", get=client.artifacts.get, seen=set())
    return deployment_node(deployment, get=client.artifacts.get)


def deployment_node(deployment: server_pb2.Deployment, *, get: Get) -> Node:
    """The tree of a deployment: its model, and the engine it runs on."""
    seen: set[str] = set()
    made_from = [artifact_node(get(deployment.model), "model", get=get, seen=seen)]
    if deployment.engine_artifact:
        made_from.append(artifact_node(get(deployment.engine_artifact), "engine", get=get, seen=seen))
    state = server_pb2.DeploymentState.Name(deployment.state).removeprefix("DEPLOYMENT_STATE_").lower()
    return Node(role="", name=deployment.name, kind="DEPLOYMENT", facts=f"{state} on {deployment.pool}", made_from=tuple(made_from))


def artifact_node(artifact: artifact_pb2.Artifact, role: str, *, get: Get, seen: set[str]) -> Node:
    """The tree of an artifact; what occurs twice is drawn out once. A source that was deleted is named all the same."""
    kind = kind_of(artifact)
    if artifact.name in seen and artifact.sources:
        return Node(role=role, name=artifact.name, kind=kind, facts=facts_of(artifact), repeated=True)
    seen.add(artifact.name)
    made_from = []
    for source in artifact.sources:
        try:
            made_from.append(artifact_node(get(source.artifact), source.role, get=get, seen=seen))
        except AtelierError as error:
            if error.status is not Status.NOT_FOUND:
                raise
            made_from.append(Node(role=source.role, name=source.artifact, kind="deleted"))
    return Node(role=role, name=artifact.name, kind=kind, facts=facts_of(artifact), made_from=tuple(made_from))


def facts_of(artifact: artifact_pb2.Artifact) -> str:
    """What is worth a glance: tags, and a few figures by kind."""
    metadata: Mapping[str, Any] = json_format.MessageToDict(artifact.metadata)
    parts = [*artifact.tags]
    if artifact.kind == artifact_pb2.ARTIFACT_KIND_DATASET:
        captions = (".txt", ".json", ".jsonl")
        parts.append(f"{sum(not file.path.endswith(captions) for file in artifact.files)} pictures")
    parts += [f"{name} {metadata[name]:g}" for name in ("steps", "rank") if isinstance(metadata.get(name), (int, float))]
    words = [metadata[name] for name in ("method", "backend", "precision", "repository") if isinstance(metadata.get(name), str)]
    parts += ["fp32" if word == "no" else word for word in words]  # as accelerate calls it
    return ", ".join(parts)


def draw(node: Node) -> Tree:
    """The tree for people."""
    tree = Tree(_label(node), guide_style="dim")
    _grow(tree, node)
    return tree


def _grow(tree: Tree, node: Node) -> None:
    for source in node.made_from:
        _grow(tree.add(_label(source)), source)


def _label(node: Node) -> str:
    name = node.name
    if name.startswith("artifacts/"):
        name = name.removeprefix("artifacts/")[:12]
    facts = f"  {node.facts}" if node.facts else ""
    return f"{node.role + ': ' if node.role else ''}{node.kind} {name}{facts}{'  (see above)' if node.repeated else ''}".replace("[", r"\[")


def _deployment(client: Client, name: str) -> server_pb2.Deployment | None:
    try:
        return client.deployments.get(full_name(name))
    except AtelierError as error:
        if error.status not in (Status.NOT_FOUND, Status.INVALID_ARGUMENT, Status.UNIMPLEMENTED, Status.UNAVAILABLE):
            raise
        return None
