"""The images as they are in the cluster: one set of layers for compilers and Ray nodes, any user, a root that nobody writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version

import pytest

from cluster.delivery import NAMES, Image, deliver
from cluster.kubectl import Kubectl
from cluster.place import NODE_NAME, default_place

pytestmark = pytest.mark.cluster

FINGERPRINT = "import json; from atelier.engines.detect import detect; print(json.dumps(detect().to_json()))"
# What a user of a container has: who they are, where they can write, and whether Python packages could be installed.
USER = """
import importlib.util, json, os, subprocess, sys
begun = subprocess.run(sys.argv[1:], capture_output=True, text=True)
assert begun.returncode == 0, begun.stderr
able = [place for place in ("/", "/opt/atelier", "/tmp", "/var/tmp", os.environ["HOME"]) if os.access(place, os.W_OK)]
print(json.dumps([os.getuid(), os.getgid(), able, importlib.util.find_spec("pip") is not None]))
"""


@pytest.fixture(autouse=True)
def ours(namespace: Kubectl) -> None:
    """The cluster that `make cluster` starts, into which `make cluster-images` has brought what was built here."""
    if NODE_NAME not in namespace("get", "nodes", "-o", "name"):
        pytest.skip("KUBECONFIG names another cluster than this machine's")


def run(kubectl: Kubectl, image: str, *words: str) -> str:
    """What a command prints in an image, under a user that the image does not know."""
    container: Mapping[str, object] = {
        "name": "main",
        "image": f"atelier/{image}:{version('atelier')}",
        "imagePullPolicy": "Never",
        "command": words,
        "resources": {"limits": {"memory": "2Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    nobody = {"runAsNonRoot": True, "runAsUser": 12345, "runAsGroup": 23456, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "securityContext": nobody, "restartPolicy": "Never", "volumes": [{"name": "tmp", "emptyDir": {}}]}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": image}, "spec": spec})
    try:
        return kubectl.result(image)
    finally:
        kubectl("delete", "pod", image, "--wait")


def test_compiler_and_ray_node_have_the_same_layers_and_equal_fingerprints(namespace: Kubectl) -> None:
    compiler, node = (list(Image.built(name).layers) for name in ("compiler", "node"))
    # Of one another's layers the node lacks one alone, that of g++.
    assert len(set(compiler) - set(node)) == 1 and set(node) < set(compiler)

    prints = [json.loads(run(namespace, image, "python3", "-c", FINGERPRINT)) for image in ("compiler", "node")]
    assert prints[0] == prints[1] and prints[0]["backends"].keys() >= {"openvino", "inductor"}


@pytest.mark.parametrize(
    ("image", "command"),
    [
        ("control", "atelier serve --help"),
        ("trainer", "atelier train --help"),
        ("converter", "atelier convert --help"),
        ("compiler", "atelier compile --help"),
        ("node", "ray start --help"),
    ],
)
def test_an_image_runs_as_anybody_who_writes_tmp_alone_and_installs_nothing(namespace: Kubectl, image: str, command: str) -> None:
    printed = run(namespace, image, "python3", "-c", USER, *command.split())
    assert json.loads(printed) == [12345, 23456, ["/tmp", "/tmp"], False]


def test_what_the_cluster_has_is_not_brought_in_again() -> None:
    assert deliver(default_place(), [Image.built(name) for name in NAMES]) == 0


def test_the_control_image_is_small() -> None:
    assert sum(layer["size"] for layer in Image.built("control").content["layers"]) <= 250_000_000
