"""A namespace in which the chart's hook runs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from api_server import NAMESPACE, ApiServer
from cryptography import x509

from atelier.certificates import Authority, Pair
from atelier.kubernetes.credentials import main

HOSTS = ("atelier", "atelier.studio.svc", "localhost", "127.0.0.1")
WORDS = ("--name=studio", "--instance=release", *(f"--host={host}" for host in HOSTS))
LABELS = {
    "app.kubernetes.io/name": "atelier",
    "app.kubernetes.io/instance": "release",
    "app.kubernetes.io/managed-by": "atelier-credentials",
}


class Cluster:
    """The hook's command, and what lies in its namespace."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api

    def hook(self, *more: str, words: tuple[str, ...] = WORDS) -> None:
        main([*words, *more])

    def data(self, name: str) -> dict[str, bytes]:
        return {key: base64.b64decode(value) for key, value in self.api.objects["secrets"][name]["data"].items()}

    def put(self, name: str, **data: bytes) -> None:
        """A Secret of somebody's; `_` in keys for dots."""
        written = {key.replace("_", "."): base64.b64encode(value).decode() for key, value in data.items()}
        self.api.put("secrets", {"metadata": {"name": name, "labels": {"by": "hand"}}, "type": "Opaque", "data": written})

    def put_pair(self, name: str, pair: Pair, **more: bytes) -> None:
        self.put(name, tls_crt=pair.certificate, tls_key=pair.key, **more)

    @property
    def public(self) -> dict[str, str]:
        return dict(self.api.objects["configmaps"]["studio-public"]["data"])

    @property
    def authority(self) -> Authority:
        data = self.data("studio-ca")
        return Authority.load(Pair(certificate=data["tls.crt"], key=data["tls.key"]))

    @property
    def everything(self) -> dict[str, Any]:
        found = {**self.api.objects["secrets"], **self.api.objects["configmaps"]}
        return {name: json.loads(json.dumps(one)) for name, one in found.items()}

    def issued(self) -> x509.Certificate:
        """The serving certificate, good under the authority."""
        certificate = x509.load_pem_x509_certificate(self.data("studio-tls")["tls.crt"])
        certificate.verify_directly_issued_by(self.authority.certificate)
        return certificate


def kubeconfig(folder: Path, port: int) -> Path:
    """A file that names the API server at a port of this machine."""
    content = {
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "here", "user": {"token": "t"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here", "namespace": NAMESPACE}}],
    }
    file = folder / "kubeconfig"
    file.write_text(json.dumps(content))
    return file
