"""The node's own interface and the kernel's settings, and how all traces of the cluster's network are removed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from cluster.place import INTERFACE, NODE_ADDRESS, POD_RANGE, Place

TABLE = "atelier-cluster"
# kube-proxy leaves its tables when it ends.
TABLES = (("ip", TABLE), ("ip", "kube-proxy"), ("ip6", "kube-proxy"))
# What pods reach outside the cluster sees the machine's address, since nobody knows the way to a pod's.
RULES = f"""
add table ip {TABLE}
flush table ip {TABLE}
add chain ip {TABLE} postrouting {{ type nat hook postrouting priority srcnat; }}
add rule ip {TABLE} postrouting ip saddr {POD_RANGE} ip daddr != {POD_RANGE} masquerade
"""
# Docker and some firewalls drop what is forwarded, whatever other tables say.
FORWARD = [["FORWARD", direction, POD_RANGE, "-j", "ACCEPT"] for direction in ("-s", "-d")]

# Set by us (the first), by CNI and by the kubelet (panic on oops among them): put back when the cluster goes.
FORWARDING = "net/ipv4/ip_forward"
SETTINGS = (
    FORWARDING,
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
KERNEL = Path("/proc/sys")


def up(place: Place) -> None:
    """Records the kernel's settings, and makes the interface and the rules; again harmless."""
    record = place.state / "kernel.json"
    if not record.exists():
        before = {name: (KERNEL / name).read_text().strip() for name in SETTINGS if (KERNEL / name).exists()}
        record.write_text(json.dumps(before))
    (KERNEL / FORWARDING).write_text("1")
    if not _exists(INTERFACE):
        # A bridge without ports, since not every kernel has dummy interfaces.
        _run("ip", "link", "add", INTERFACE, "type", "bridge")
    _run("ip", "address", "replace", f"{NODE_ADDRESS}/32", "dev", INTERFACE)
    _run("ip", "link", "set", INTERFACE, "up")
    subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
    if _drops_what_is_forwarded():
        for rule in FORWARD:
            if subprocess.run(["iptables", "-C", *rule], capture_output=True).returncode:
                _run("iptables", "-I", *rule)


def down(place: Place) -> None:
    """Removes the interface and the rules, and puts the kernel's settings back."""
    if _drops_what_is_forwarded():
        for rule in FORWARD:
            subprocess.run(["iptables", "-D", *rule], capture_output=True)
    for family, table in TABLES:
        subprocess.run(["nft", "delete", "table", family, table], capture_output=True)
    if _exists(INTERFACE):
        _run("ip", "link", "delete", INTERFACE)
    record = place.state / "kernel.json"
    if record.exists():
        before = json.loads(record.read_text())
        if _others_forward():
            del before[FORWARDING]
        for name, value in before.items():
            (KERNEL / name).write_text(value)


def _drops_what_is_forwarded() -> bool:
    if not shutil.which("iptables"):
        return False
    listed = subprocess.run(["iptables", "-S", "FORWARD"], capture_output=True, text=True)
    return "-P FORWARD DROP" in listed.stdout


def _others_forward() -> bool:
    """Whether containers of somebody else (docker, buildah) have a bridge, which needs forwarding too."""
    return any(path.parent.name != INTERFACE for path in Path("/sys/class/net").glob("*/bridge"))


def _exists(interface: str) -> bool:
    return Path("/sys/class/net", interface).exists()


def _run(*words: str) -> None:
    subprocess.run(words, check=True)
