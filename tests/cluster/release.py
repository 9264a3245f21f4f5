"""Atelier installed by its chart, and what a person on the outside has of it: an address, a token, an authority."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atelier.client.client import Client
from atelier.rpc.tls import Tls
from cluster.connections import Seen
from cluster.kubectl import Kubectl

CHART = Path(__file__).parents[2] / "charts" / "atelier"
NAME = "atelier"
INSTALL_SECONDS = 300
KINDS = (
    "all", "configmaps", "secrets", "serviceaccounts", "roles", "rolebindings", "networkpolicies", "pvc", "poddisruptionbudgets", "jobs",
)  # fmt: skip
KEPT = {
    *(f"secret/{NAME}-{word}" for word in ("ca", "tls", "token", "internal", "ray", "signing")),
    f"configmap/{NAME}-public",
    f"persistentvolumeclaim/{NAME}-data",
}
"""What an uninstalled release leaves: what its notes name."""


class Release:
    """A release in the namespace of `kubectl`."""

    def __init__(self, kubectl: Kubectl, folder: Path, *, values: Mapping[str, Any] | None = None, flags: Sequence[str] = ()) -> None:
        self.kubectl = kubectl
        self.folder = folder
        self.flags = flags
        self.values = dict(values or {})
        self.chart = CHART
        self.seen = Seen()

    def helm(self, *words: str, ok: bool = True) -> str:
        """What helm prints."""
        command = ["helm", "--namespace", self.kubectl.namespace, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS + 60)
        if ok and done.returncode:
            everything = self.kubectl("get", "pods,jobs,events", "-o", "wide", ok=False)
            pytest.fail(f"{' '.join(command)}: {done.stdout}{done.stderr}\n{everything}\n{self.logs()}")
        return done.stdout + ("" if ok else done.stderr)

    def install(self, **more: Any) -> str:
        """`helm upgrade --install` with these values on top; gives the notes."""
        self.values |= more
        timeout = f"--timeout={INSTALL_SECONDS}s"
        return self.helm("upgrade", "--install", NAME, str(self.chart), "-f", str(self.write()), timeout, *self.flags)

    def write(self) -> Path:
        """The values, in a file."""
        file = self.folder / "values.json"
        file.write_text(json.dumps(self.values))
        return file

    def rolled_out(self, *components: str) -> None:
        """Waits until the pods of these are all of the newest kind, and ready."""
        for component in components:
            self.kubectl("rollout", "status", f"deployment/{NAME}-{component}", "--timeout=240s", seconds=300)

    def uninstall(self) -> str:
        return self.helm("uninstall", NAME, "--wait", f"--timeout={INSTALL_SECONDS}s")

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Pods of a component, without those that are being deleted."""
        found = self.kubectl.get("pods", "-l", f"app.kubernetes.io/component={component}")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def nodes(self, pool: str) -> list[dict[str, Any]]:
        """The pods of a pool's Ray nodes."""
        return [pod for pod in self.pods("ray-node") if pod["metadata"]["labels"]["atelier.dev/pool"] == pool]

    def ready(self, component: str) -> list[str]:
        """Names of a component's pods that are ready."""
        return [pod["metadata"]["name"] for pod in self.pods(component) if {"type": "Ready", "status": "True"} in _conditions(pod)]

    def evict(self, pod: str) -> None:
        """What a drain of its node does to a pod, by the API that asks disruption budgets."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.kubectl.namespace}}
        path = f"/api/v1/namespaces/{self.kubectl.namespace}/pods/{pod}/eviction"
        file = self.folder / "eviction.json"
        file.write_text(json.dumps(eviction))
        self.kubectl("create", "--raw", path, "-f", str(file))

    def atelier(self, *words: str) -> str:
        """What the command line prints."""
        (self.folder / "token").write_text(self.token)
        with self.forwarded(f"service/{NAME}", 7878) as port:
            where = ["--server", f"https://localhost:{port}", "--token-file", str(self.folder / "token"), "--ca-file", str(self.authority)]
            command = [sys.executable, "-m", "atelier.cli", *where, *words]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout

    def replicas(self) -> dict[str, set[str]]:
        """What Serve itself says: the addresses of the pods on which each pool's replicas run."""
        with self.forwarded(f"service/{NAME}-ray-head", 8265) as port:
            url = f"http://127.0.0.1:{port}/api/serve/applications/"
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.secret(f'{NAME}-ray', 'token')}"})
            with urllib.request.urlopen(request, timeout=30) as response:
                found = json.load(response)["applications"]
        return {
            pool: {replica.get("node_ip") for one in application["deployments"].values() for replica in one["replicas"]} - {None}
            for pool, application in found.items()
        }

    def left(self) -> set[str]:
        """What there is in the namespace beside what every namespace has."""
        found = set(self.kubectl("get", ",".join(KINDS), "-o", "name").split())
        return found - {"configmap/kube-root-ca.crt", "serviceaccount/default"}

    def secret(self, name: str, key: str) -> str:
        """A value of a Secret."""
        return base64.b64decode(self.kubectl.get("secret", name)["data"][key]).decode()

    def logs(self) -> str:
        """The tail of every container's log."""
        names = self.kubectl("get", "pods", "-o", "name", ok=False).split()
        return "\n".join(
            f"== {name}\n{self.kubectl('logs', name, '--all-containers', '--tail=15', '--prefix', ok=False)}" for name in names
        )

    @contextmanager
    def client(self) -> Iterator[Client]:
        """The Python client, through `kubectl port-forward` to the one Service that is for clients."""
        with (
            self.forwarded(f"service/{NAME}", 7878) as port,
            Client(f"https://localhost:{port}", self.token, tls=Tls(ca=self.authority)) as client,
        ):
            yield client

    @contextmanager
    def outside(self) -> Iterator[Client]:
        """The Python client at the Service's own address, over which gRPC spreads new connections: a port-forward would end with its pod.

        The certificate is issued anew for it, and read by pods that go on.
        """
        address = self.kubectl.get("service", NAME)["spec"]["clusterIP"]
        self.install(tls={"extraHosts": [address]})
        with Client(f"https://{address}:7878", self.token, tls=Tls(ca=self.authority)) as client:
            yield client

    @property
    def token(self) -> str:
        return self.secret(f"{NAME}-token", "token")

    @property
    def authority(self) -> Path:
        """The file of the certificate's authority."""
        file = self.folder / "ca.crt"
        file.write_text(self.kubectl.get("configmap", f"{NAME}-public")["data"]["ca.crt"])
        return file

    @contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[int]:
        """A local port that leads to a port of a Service or pod."""
        process = subprocess.Popen(self.kubectl.command("port-forward", target, f":{port}"), stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "Forwarding from" in line, f"{target} cannot be reached\n{self.logs()}"
            yield int(line.split(":")[1].split()[0])
        finally:
            process.kill()
            process.wait()


def _conditions(pod: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"type": one["type"], "status": one["status"]} for one in pod["status"].get("conditions", [])]


def until(holds: Any, *, seconds: float, release: Release) -> None:
    """Waits; where it does not come true, shows what the pods say."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            pytest.fail(
                f"did not come true in {seconds} s\n{release.kubectl('get', 'pods,events', '-o', 'wide', ok=False)}\n{release.logs()}"
            )
        time.sleep(0.5)
