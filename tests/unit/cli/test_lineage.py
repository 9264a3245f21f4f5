"""From an endpoint back to the pictures."""

from __future__ import annotations

import json

from fake_files import LORA, model, safetensors
from fake_shell import Shell

from atelier.client import Client
from atelier.v1 import artifact_pb2, server_pb2


def source(role: str, artifact: artifact_pb2.Artifact) -> artifact_pb2.ArtifactSource:
    return artifact_pb2.ArtifactSource(role=role, artifact=artifact.name)


def deploy(shell: Shell) -> artifact_pb2.Artifact:
    """A merged model in service; gives the LoRA in it."""
    safetensors(shell.folder / "lora" / "az.safetensors", LORA)
    with Client(shell.installation.target) as client:
        base = client.artifacts.upload(model(shell.folder / "model"), tags=["base"])
        pictures = client.artifacts.upload(shell.pictures("octopus", 6))
        made_of = [source("base", base), source("dataset", pictures)]
        lora = client.artifacts.upload(shell.folder / "lora", sources=made_of, tags=["az-octopus"], metadata={"steps": 400, "rank": 16})
        merged = client.artifacts.upload(shell.folder / "model", sources=[source("base", base), source("lora", lora)])
        shell.fake.deployments["deployments/az-octopus"] = server_pb2.Deployment(
            name="deployments/az-octopus", model=merged.name, pool="pools/local", state=server_pb2.DEPLOYMENT_STATE_READY
        )
    return lora


def test_the_tree_goes_from_the_endpoint_back_to_the_pictures(shell: Shell) -> None:
    lora = deploy(shell)
    assert shell("artifacts lineage az-octopus") == 0
    lines = shell.out.splitlines()
    assert lines[0] == "DEPLOYMENT deployments/az-octopus  ready on pools/local"
    assert lines[1].startswith("└── model: MODEL ")
    assert lines[2].startswith("    ├── base: MODEL ") and lines[2].endswith("base:latest")
    assert lines[3].startswith(f"    └── lora: LORA {lora.name[10:22]}  az-octopus:latest, steps 400, rank 16")
    assert lines[4].startswith("        ├── base: MODEL ")
    assert lines[5].startswith("        └── dataset: DATASET ") and lines[5].endswith("6 pictures")


def test_an_artifact_has_a_tree_without_a_deployment(shell: Shell) -> None:
    lora = deploy(shell)
    assert shell(f"artifacts lineage {lora.name}") == 0
    assert shell.out.startswith("LORA ") and len(shell.out.splitlines()) == 3


def test_the_tree_is_json_too(shell: Shell) -> None:
    deploy(shell)
    assert shell("artifacts lineage az-octopus --json") == 0
    tree = json.loads(shell.out)
    assert [node["role"] for node in tree["made_from"][0]["made_from"]] == ["base", "lora"]


def test_a_source_that_was_deleted_is_named(shell: Shell) -> None:
    lora = deploy(shell)
    with Client(shell.installation.target) as client:
        client.artifacts.delete(lora.sources[1].artifact)
    shell(f"artifacts lineage {lora.name}")
    assert f"dataset: deleted {lora.sources[1].artifact[10:22]}" in shell.out


def test_an_unknown_name_is_an_error(shell: Shell) -> None:
    assert shell("artifacts lineage nothing") == 1
    assert shell.err.startswith("error: there is no artifact 'nothing'")
