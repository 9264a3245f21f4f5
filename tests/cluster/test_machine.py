"""The cluster of this machine is one: pods under restricted PodSecurity, names, Services, volumes, placement."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.images import PROBE_IMAGE
from cluster.kubectl import Kubectl, eventually
from cluster.nodes import FAKE
from cluster.place import NODE_NAME, default_place

pytestmark = pytest.mark.cluster

ANSWER = "web, uid 12345\n"


@pytest.fixture(autouse=True)
def ours(kubectl: Kubectl) -> None:
    """These tests are of the cluster that `make cluster` starts, which has their image."""
    if NODE_NAME not in kubectl("get", "nodes", "-o", "name"):
        pytest.skip("KUBECONFIG names another cluster than this machine's")


def container(*words: str, **more: object) -> dict[str, object]:
    return {
        "name": "main",
        "image": PROBE_IMAGE,
        "imagePullPolicy": "Never",
        "args": words,
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        **more,
    }


def spec(*words: str, **more: object) -> dict[str, object]:
    return {
        "containers": [container(*words)],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 12345, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 1,
        **more,
    }


def pod(name: str, content: Mapping[str, object]) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": content}


def job(name: str, product: str) -> dict[str, object]:
    gpu = {"name": "main", **container("serve", ":8080"), "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    more = {
        "containers": [gpu],
        "restartPolicy": "Never",
        "nodeSelector": {"nvidia.com/gpu.product": product},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"template": {"spec": spec(**more)}}}


def web(kubectl: Kubectl) -> None:
    """A pod behind a Service, which answers."""
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    kubectl.apply(
        pod("web", spec(containers=[container("serve", ":8080", readinessProbe=probe)])),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )
    kubectl.wait("condition=Ready", "pod/web")
    # kube-proxy hears of a ready pod after the API server does.
    eventually(lambda: by_short_name(kubectl) == ANSWER)


def by_short_name(kubectl: Kubectl) -> str:
    """What the pod hears from itself, by its Service."""
    return kubectl("exec", "web", "--", "/probe", "get", f"http://web.{kubectl.namespace}/", ok=False)


def test_a_pod_without_rights_runs_and_is_reached_by_the_name_of_its_service(kubectl: Kubectl) -> None:
    web(kubectl)
    address = f"http://web.{kubectl.namespace}.svc.cluster.local/"
    kubectl.apply(pod("client", spec("get", address, restartPolicy="Never")))

    assert kubectl.result("client") == ANSWER
    assert "GET / from" in kubectl("logs", "web")
    assert "read-only file system" in kubectl("exec", "web", "--", "/probe", "write", "/tmp/file", "text", ok=False)
    status = kubectl("exec", "web", "--", "/probe", "read", "/proc/self/status")
    assert "CapEff:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status


def test_a_pod_that_takes_more_memory_than_its_limit_is_killed(kubectl: Kubectl) -> None:
    # /dev/zero has no end: reading it whole takes all memory that there is.
    kubectl.apply(pod("greedy", spec("read", "/dev/zero", restartPolicy="Never")))
    kubectl.wait("jsonpath={.status.phase}=Failed", "pod/greedy")
    assert kubectl.get("pod", "greedy")["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


def test_a_pod_answers_through_port_forward(kubectl: Kubectl) -> None:
    web(kubectl)
    with forwarded(kubectl, "service/web", 80) as port, urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
        assert response.read() == ANSWER.encode()


def test_a_pod_under_root_is_refused(kubectl: Kubectl) -> None:
    refused = kubectl("run", "root", f"--image={PROBE_IMAGE}", "--", "serve", ":8080", ok=False)
    assert "violates PodSecurity" in refused


def test_a_claim_of_the_default_class_is_bound_written_and_removed(kubectl: Kubectl) -> None:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": claim})
    kubectl.wait("jsonpath={.status.phase}=Bound", "pvc/data")
    volume = kubectl.get("pvc", "data")["spec"]["volumeName"]
    folder = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    for name, printed, words in (("writer", "", ("write", "/data/file", "kept")), ("reader", "kept", ("read", "/data/file"))):
        mounted = container(*words, volumeMounts=[{"name": "data", "mountPath": "/data"}])
        kubectl.apply(pod(name, spec(containers=[mounted], volumes=[folder], restartPolicy="Never")))
        assert kubectl.result(name) == printed

    kubectl("delete", "pod/writer", "pod/reader", "pvc/data")
    kubectl.wait("delete", f"pv/{volume}")
    assert not (default_place().volumes / volume).exists()


def test_jobs_go_to_the_nodes_of_their_gpu_and_wait_when_all_are_taken(kubectl: Kubectl) -> None:
    kubectl.apply(*(job(f"a10-{number}", "NVIDIA-A10") for number in range(3)))
    kubectl.wait("condition=Complete", "job/a10-0", "job/a10-1", "job/a10-2")
    nodes = [item["spec"]["nodeName"] for item in kubectl.get("pods")["items"]]
    assert set(nodes) <= {"a10-0", "a10-1"}, "each ran on an A10; the third when one was free again"


def test_the_third_pod_for_two_gpus_stays_pending_and_says_why(kubectl: Kubectl) -> None:
    for number in range(3):
        content = job("", "NVIDIA-A10")["spec"]["template"]["spec"]  # type: ignore[index]
        kubectl.apply(pod(f"pod-{number}", {**content, "restartPolicy": "Always"}))
    eventually(lambda: placement(kubectl).count("") == 1 and len(placement(kubectl)) == 3)
    assert sorted(filter(None, placement(kubectl))) == ["a10-0", "a10-1"]
    assert "Insufficient nvidia.com/gpu" in kubectl("get", "events", "--field-selector=reason=FailedScheduling", "-o", "yaml")


def test_an_ordinary_pod_stays_off_the_fake_nodes(kubectl: Kubectl) -> None:
    for number in range(3):
        kubectl.apply(pod(f"pod-{number}", spec("serve", ":8080")))
    kubectl.wait("condition=Ready", "pod/pod-0", "pod/pod-1", "pod/pod-2")
    assert set(placement(kubectl)) == {NODE_NAME}
    assert set(FAKE) < {item["metadata"]["name"] for item in kubectl.get("nodes")["items"]}


def test_a_network_policy_is_accepted_and_not_enforced(kubectl: Kubectl) -> None:
    """Known, and said in the docs: the cluster's network does not know NetworkPolicies."""
    web(kubectl)
    deny = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    kubectl.apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"}, "spec": deny})
    assert by_short_name(kubectl) == ANSWER


def test_a_second_make_cluster_starts_only_what_died(kubectl: Kubectl) -> None:
    assert "started: nothing" in up()
    subprocess.run(["pkill", "-9", "-f", f"^{default_place().bin}/kube-scheduler "], check=True)
    assert "started: scheduler" in up()


def up() -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run([sys.executable, "-m", "cluster", "up"], env=environment, capture_output=True, text=True, check=True).stdout


def placement(kubectl: Kubectl) -> list[str]:
    return [item["spec"].get("nodeName", "") for item in kubectl.get("pods")["items"]]


@contextmanager
def forwarded(kubectl: Kubectl, target: str, port: int) -> Iterator[int]:
    """The port of this machine that leads to one of a pod."""
    command = kubectl.command("port-forward", target, f":{port}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("Forwarding from"), line
            yield int(line.split(":")[1].split()[0])
        finally:
            process.terminate()
