"""The chart's hook on a real API server, with the account, the Role and the words that the chart gives it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from atelier.artifacts.signing import public_of
from atelier.certificates import hosts_of
from cluster.kubectl import Kubectl
from cluster.release import NAME, Release

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ACCOUNT = f"{NAME}-credentials"
SECRETS = [f"{NAME}-{one}" for one in ("ca", "internal", "ray", "ray-ca", "signing", "tls", "token")]
OURS = ("-l", f"app.kubernetes.io/instance={NAME},app.kubernetes.io/managed-by=atelier-credentials")


class Hook:
    """Run as a process of this machine that has nothing but its account's token."""

    def __init__(self, kubectl: Kubectl, folder: Path, values: dict[str, object]) -> None:
        self.kubectl = kubectl
        release = Release(kubectl, folder, values={**values, "ray": {"tls": True}})
        rendered = [
            one for one in yaml.safe_load_all(release.helm("template", NAME, str(release.chart), "-f", str(release.write()))) if one
        ]
        own = [one for one in rendered if one["metadata"]["name"] == ACCOUNT]
        kubectl.apply(*(one for one in own if one["kind"] in ("ServiceAccount", "Role", "RoleBinding")))
        (job,) = (one for one in own if one["kind"] == "Job")
        self.words: list[str] = job["spec"]["template"]["spec"]["containers"][0]["args"]
        self.file = folder / "kubeconfig"
        settings = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        settings["users"] = [{"name": "hook", "user": {"token": kubectl("create", "token", ACCOUNT)}}]
        settings["contexts"][0]["context"] |= {"user": "hook", "namespace": kubectl.namespace}
        self.file.write_text(json.dumps(settings))

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "atelier.kubernetes.credentials", *self.words, *more]
        environment = {**os.environ, "KUBECONFIG": str(self.file)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __call__(self, *more: str, code: int = 0) -> str:
        """What it prints, of both streams."""
        process = self.start(*more)
        printed = "".join(process.communicate(timeout=120))
        assert process.returncode == code, printed
        return printed

    def may(self, *words: str) -> str:
        """What kubectl prints, both streams, for the hook's account."""
        command = ["kubectl", "--kubeconfig", str(self.file), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def data(self, name: str) -> dict[str, bytes]:
        return {key: base64.b64decode(value) for key, value in self.kubectl.get("secret", name)["data"].items()}

    def public(self) -> dict[str, str]:
        return dict(self.kubectl.get("configmap", f"{NAME}-public")["data"])

    def everything(self) -> dict[str, Any]:
        """Names of what it made -> object."""
        return {one["metadata"]["name"]: one for one in self.kubectl.get("secret,configmap", *OURS)["items"]}


@pytest.fixture
def hook(kubectl: Kubectl, tmp_path: Path, image_values: dict[str, object]) -> Hook:
    return Hook(kubectl, tmp_path, image_values)


def test_the_chart_s_account_makes_everything_once(hook: Hook, tmp_path: Path) -> None:
    printed = hook()
    made = hook.everything()
    assert sorted(made) == sorted([*SECRETS, f"{NAME}-public"])
    tls, ca = hook.data(f"{NAME}-tls"), hook.data(f"{NAME}-ca")
    assert tls["ca.crt"] == ca["tls.crt"] and hook.public()["ca.crt"].encode() == ca["tls.crt"]
    assert hook.public()["signing.pub"].encode() == public_of(hook.data(f"{NAME}-signing")["signing.pem"], where="")
    for name in SECRETS:
        assert all(value.decode() not in printed for value in hook.data(name).values())
    if shutil.which("openssl"):
        for file, content in (("ca.crt", tls["ca.crt"]), ("tls.crt", tls["tls.crt"])):
            (tmp_path / file).write_bytes(content)
        for host in (NAME, f"{NAME}-trainer.{hook.kubectl.namespace}.svc", "localhost"):
            command = ["openssl", "verify", "-x509_strict", "-CAfile", "ca.crt", "-verify_hostname", host, "tls.crt"]
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert hook().count("kept ") == 8 and hook.everything() == made


def test_another_host_gives_another_certificate_and_nothing_else(hook: Hook) -> None:
    hook()
    made = hook.everything()
    printed = hook("--host=atelier.example.com", "--host=192.0.2.7")
    assert "(its names change: +192.0.2.7 +atelier.example.com)" in printed
    issued = x509.load_pem_x509_certificate(hook.data(f"{NAME}-tls")["tls.crt"])
    issued.verify_directly_issued_by(x509.load_pem_x509_certificate(hook.data(f"{NAME}-ca")["tls.crt"]))
    assert {"atelier.example.com", "192.0.2.7", "localhost"} < hosts_of(issued)
    assert {name for name, one in hook.everything().items() if one != made[name]} == {f"{NAME}-tls"}


def test_what_is_half_made_is_completed_and_what_may_not_be_is_named(hook: Hook) -> None:
    hook.kubectl("create", "secret", "generic", f"{NAME}-token", "--from-literal=note=mine")
    hook.kubectl("create", "secret", "generic", f"{NAME}-internal", "--from-literal=token=ours")
    hook.kubectl("create", "secret", "generic", f"{NAME}-tls", "--from-literal=tls.crt=", "--type=Opaque")
    assert f"completed Secret {NAME}-token: token\n" in hook()
    assert hook.data(f"{NAME}-token")["note"] == b"mine" and len(hook.data(f"{NAME}-token")["token"]) == 43
    assert hook.data(f"{NAME}-internal") == {"token": b"ours"} and set(hook.data(f"{NAME}-tls")) == {"tls.crt", "tls.key", "ca.crt"}
    hook.kubectl("delete", "secret", f"{NAME}-ray")
    hook.kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{NAME}-ray"}, "immutable": True})
    refused = hook(code=1)
    assert refused.splitlines()[-1].startswith(f"error: the API server refuses Secret {NAME}-ray: ") and "immutable" in refused


def test_hooks_at_once_agree(hook: Hook) -> None:
    running = [hook.start() for _ in range(4)]
    printed = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0] * 4, printed
    for name in SECRETS:
        assert sum(f"made Secret {name}\n" in out for out, _ in printed) == 1, printed
    assert hook.data(f"{NAME}-tls")["ca.crt"] == hook.data(f"{NAME}-ca")["tls.crt"] == hook.public()["ca.crt"].encode()
    assert hook().count("kept ") == 8


def test_its_account_may_nothing_else(hook: Hook, tmp_path: Path) -> None:
    hook()
    hook.kubectl("create", "secret", "generic", "other", "--from-literal=a=b")
    file = str(tmp_path / "stranger.json")
    stranger = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "stranger"}, "stringData": {"a": "b"}}
    Path(file).write_text(json.dumps(stranger))
    tried = [
        ("get", "secrets"), ("get", "secrets", "-A"), ("get", "secret", "other"), ("get", "secret", f"{NAME}-token", "-n", "kube-system"),
        ("get", "configmaps"), ("get", "configmap", "kube-root-ca.crt"), ("get", "pods"), ("get", "nodes"), ("create", "token", ACCOUNT),
        ("create", "secret", "generic", "another"), ("create", "configmap", "another"), ("create", "-f", file),
        ("apply", "--server-side", "-f", file), ("patch", "secret", "other", "-p", '{"stringData": {"a": "c"}}'),
        ("delete", "secret", "other"), ("delete", "secret", f"{NAME}-token"),
    ]  # fmt: skip
    assert [words for words in tried if "forbidden" not in hook.may(*words).lower()] == []


def test_without_its_role_it_says_so_in_one_line(hook: Hook) -> None:
    hook.kubectl("delete", "rolebinding", ACCOUNT)
    (line,) = hook(code=1).splitlines()
    assert line.startswith("error: the API server refuses Secret ") and "its Role must allow" in line


def test_one_command_of_the_notes_removes_all_of_it(hook: Hook) -> None:
    hook()
    hook.kubectl("delete", "secret,configmap", *OURS)
    left = hook.kubectl("get", "secret,configmap", "-o", "name").split()
    assert left == ["configmap/kube-root-ca.crt"]
