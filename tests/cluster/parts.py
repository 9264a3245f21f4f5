"""The command lines of the parts, in the order in which they start, and how each shows that it answers."""

from __future__ import annotations

import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cluster.place import FAKE_RANGE, NODE_ADDRESS, NODE_NAME, POD_RANGE, SERVICE_RANGE, Place
from cluster.processes import Part
from cluster.tools import stages


def containerd(place: Place) -> Part:
    """The container runtime; its `ctr` is in the same package."""
    words = ["containerd", "--config", str(place.configuration / "containerd.toml")]

    def answers() -> bool:
        return subprocess.run(["ctr", "--address", str(place.containerd_socket), "version"], capture_output=True).returncode == 0

    return Part("containerd", words, answers)


def etcd(place: Place) -> Part:
    """The API server's storage. No fsync: nothing here has to outlive the machine's power."""
    client, peer = (f"http://127.0.0.1:{place.ports[name]}" for name in ("etcd", "etcd-peer"))
    words = [
        f"{place.bin}/etcd",
        f"--data-dir={place.state}/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]
    return Part("etcd", words, _http(f"{client}/health"))


def apiserver(place: Place) -> Part:
    """The API server; it makes its own certificate, which is also the authority of the kubeconfig."""
    secrets = place.secrets
    words = [
        f"{place.bin}/kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{place.ports['etcd']}",
        f"--bind-address={NODE_ADDRESS}",
        f"--advertise-address={NODE_ADDRESS}",
        f"--secure-port={place.ports['apiserver']}",
        f"--cert-dir={secrets}/apiserver",
        f"--token-auth-file={secrets}/tokens.csv",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={secrets}/accounts.key",
        f"--service-account-signing-key-file={secrets}/accounts.key",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        # The node's name has no address that anybody knows.
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={secrets}/kubelet-client.crt",
        f"--kubelet-client-key={secrets}/kubelet-client.key",
    ]
    return Part("apiserver", words, _http(f"{place.server}/readyz", token=secrets / "token"))


def controllers(place: Place) -> Part:
    """Everything that Kubernetes does by itself."""
    port = place.ports["controller-manager"]
    words = [
        f"{place.bin}/kube-controller-manager",
        f"--kubeconfig={place.kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--leader-elect=false",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={place.secrets}/accounts.key",
        f"--root-ca-file={place.secrets}/apiserver/apiserver.crt",
        f"--flex-volume-plugin-dir={place.state}/volume-plugins",
        f"--cert-dir={place.secrets}/controller-manager",
    ]
    return Part("controller-manager", words, _http(f"https://127.0.0.1:{port}/healthz"))


def scheduler(place: Place) -> Part:
    """What chooses a node for each pod."""
    port = place.ports["scheduler"]
    words = [
        f"{place.bin}/kube-scheduler",
        f"--kubeconfig={place.kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--leader-elect=false",
        f"--cert-dir={place.secrets}/scheduler",
    ]
    return Part("scheduler", words, _http(f"https://127.0.0.1:{port}/healthz"))


def kubelet(place: Place) -> Part:
    """This machine as a node."""
    words = [
        f"{place.bin}/kubelet",
        f"--config={place.configuration}/kubelet.json",
        f"--kubeconfig={place.kubeconfig}",
        f"--root-dir={place.state}/kubelet",
        f"--cert-dir={place.secrets}/kubelet",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={NODE_ADDRESS}",
    ]
    return Part("kubelet", words, _http(f"http://127.0.0.1:{place.ports['kubelet-health']}/healthz"))


def proxy(place: Place) -> Part:
    """What makes the addresses of Services reachable, by nftables. The machine's limits of conntrack stay as they are."""
    health = f"127.0.0.1:{place.ports['proxy-health']}"
    words = [
        f"{place.bin}/kube-proxy",
        f"--kubeconfig={place.kubeconfig}",
        f"--hostname-override={NODE_NAME}",
        "--proxy-mode=nftables",
        f"--cluster-cidr={POD_RANGE}",
        f"--nodeport-addresses={NODE_ADDRESS}/32",
        f"--healthz-bind-address={health}",
        f"--metrics-bind-address=127.0.0.1:{place.ports['proxy-metrics']}",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ]
    return Part("kube-proxy", words, _http(f"http://{health}/healthz"))


def coredns(place: Place) -> Part:
    """The names of Services, at the node's address."""
    words = [f"{place.bin}/coredns", "-conf", f"{place.configuration}/Corefile"]
    return Part("coredns", words, _http(f"http://127.0.0.1:{place.ports['coredns-health']}/health"))


def kwok(place: Place) -> Part:
    """What plays the fake nodes' kubelets."""
    address = f"127.0.0.1:{place.ports['kwok']}"
    words = [
        f"{place.bin}/kwok",
        f"--kubeconfig={place.kubeconfig}",
        f"--config={stages(place)}",
        "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        "--node-lease-duration-seconds=40",
        f"--node-ip={NODE_ADDRESS}",
        f"--cidr={FAKE_RANGE}",
        f"--server-address={address}",
    ]
    return Part("kwok", words, _http(f"http://{address}/healthz"))


def provisioner(place: Place) -> Part:
    """What binds claims of the default StorageClass: storage.py."""
    return Part("provisioner", [sys.executable, "-m", "cluster.storage", str(place.kubeconfig), str(place.volumes)], lambda: True)


def _http(url: str, token: Path | None = None) -> Callable[[], bool]:
    def answers() -> bool:
        # Whether it answers is asked, not who it is.
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token.read_text()}"} if token else {})
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
        )
        try:
            with opener.open(request, timeout=3) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    return answers
