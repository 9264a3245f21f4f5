"""The files that the parts read: keys, tokens, kubeconfig, and a configuration each for containerd, CNI, kubelet and CoreDNS."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cluster.place import CGROUP, NODE_ADDRESS, POD_RANGE, Place

PAUSE_IMAGE = "localhost/pause:1"
DOMAIN = "cluster.local"


def write_secrets(place: Place) -> None:
    """The administrator's token, the key that signs service accounts' tokens, and the API server's certificate for kubelets; once."""
    place.secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = place.secrets / "token"
    if not token.exists():
        token.write_text(secrets.token_urlsafe(32))
    (place.secrets / "tokens.csv").write_text(f"{token.read_text()},admin,admin,system:masters\n")
    if not (place.secrets / "accounts.key").exists():
        _openssl("genrsa", "-out", place.secrets / "accounts.key", "2048")
    if not (place.secrets / "kubelet-client.crt").exists():
        # Self-signed, so that the certificate is also the authority that the kubelet asks for.
        names = ["-subj", "/O=system:masters/CN=kube-apiserver", "-addext", "extendedKeyUsage=clientAuth", "-days", "3650"]
        files: list[str | Path] = ["-keyout", place.secrets / "kubelet-client.key", "-out", place.secrets / "kubelet-client.crt"]
        _openssl("req", "-x509", "-nodes", "-newkey", "rsa:2048", *names, *files)


def write_kubeconfig(place: Place) -> None:
    """The administrator's kubeconfig, which all parts use too; JSON, which is YAML. Needs the API server's certificate."""
    certificate = (place.secrets / "apiserver" / "apiserver.crt").read_bytes()
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "atelier",
        "clusters": [
            {"name": "atelier", "cluster": {"server": place.server, "certificate-authority-data": base64.b64encode(certificate).decode()}}
        ],
        "users": [{"name": "admin", "user": {"token": (place.secrets / "token").read_text()}}],
        "contexts": [{"name": "atelier", "context": {"cluster": "atelier", "user": "admin", "namespace": "default"}}],
    }
    place.kubeconfig.touch(mode=0o600)
    place.kubeconfig.write_text(json.dumps(content, indent=2))


def write(place: Place, cni_folder: Path) -> None:
    """All configurations that do not need the API server."""
    for folder in (place.configuration / "cni", place.logs / "pods", place.volumes, place.run):
        folder.mkdir(parents=True, exist_ok=True)
    (place.configuration / "containerd.toml").write_text(_containerd(place, cni_folder))
    _write_json(place.configuration / "cni" / "10-atelier.conflist", _cni(place))
    _write_json(place.configuration / "kubelet.json", _kubelet(place))
    (place.configuration / "Corefile").write_text(_corefile(place))


def _containerd(place: Place, cni_folder: Path) -> str:
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE (this machine may be a container) no pod starts otherwise.
    # netns_mounts_under_state_dir and Root: else these are in /var/run/netns and /run/containerd, beside other people's.
    return f"""version = 2
root = "{place.state}/containerd"
state = "{place.run}/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{place.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_folder}"
    conf_dir = "{place.configuration}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "{place.run}/runc"
"""


def _cni(place: Place) -> Mapping[str, object]:
    # ptp and not bridge: on a bridge an answer from a Service's pod takes the short way past the kernel's address translation and is
    # dropped, unless br_netfilter is loaded; point to point everything is routed. Masquerading is network.py's, without iptables.
    ranges = [[{"subnet": POD_RANGE}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": str(place.state / "addresses")}
    return {"cniVersion": "1.0.0", "name": "atelier", "plugins": [{"type": "ptp", "ipMasq": False, "mtu": 1400, "ipam": ipam}]}


def _kubelet(place: Place) -> Mapping[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "port": place.ports["kubelet"],
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": place.ports["kubelet-health"],
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(place.secrets / "kubelet-client.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{place.containerd_socket}",
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": DOMAIN,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": False,
        # The disk is other people's too, and an image that was loaded from a file cannot be pulled again.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "podLogsDir": str(place.logs / "pods"),
        "volumePluginDir": str(place.state / "volume-plugins"),
    }


def _corefile(place: Place) -> str:
    return f""".:53 {{
    bind {NODE_ADDRESS}
    errors
    health 127.0.0.1:{place.ports["coredns-health"]}
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {place.kubeconfig}
        ttl 5
    }}
    forward . /etc/resolv.conf
    cache 5
}}
"""


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2))


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
