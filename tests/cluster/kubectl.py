"""kubectl as the tests call it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest


class Kubectl:
    """kubectl in one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def command(self, *words: str) -> list[str]:
        return ["kubectl", "--namespace", self.namespace, *words]

    def __call__(self, *words: str, ok: bool = True, seconds: float = 120) -> str:
        """What it prints; both streams, and no failure, where a failure is expected."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=seconds)
        if ok and done.returncode:
            pytest.fail(f"kubectl {' '.join(words)}: {done.stderr}\n{self._events()}")
        return done.stdout if ok else done.stdout + done.stderr

    def apply(self, *objects: Mapping[str, object]) -> None:
        """Applies objects as they are."""
        content = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        subprocess.run(self.command("apply", "-f", "-"), input=content, text=True, check=True, timeout=120)

    def get(self, *words: str) -> dict[str, Any]:
        return dict(json.loads(self("get", *words, "-o", "json")))

    def wait(self, condition: str, *words: str, seconds: int = 90) -> None:
        self("wait", f"--for={condition}", f"--timeout={seconds}s", *words)

    def result(self, pod: str) -> str:
        """What a pod printed that has ended well."""
        eventually(lambda: self.get("pod", pod)["status"]["phase"] in ("Succeeded", "Failed"))
        printed = self("logs", pod)
        assert self.get("pod", pod)["status"]["phase"] == "Succeeded", printed
        return printed

    def _events(self) -> str:
        command = self.command("get", "pods,events", "-o", "wide")
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def eventually(holds: Callable[[], bool], *, seconds: float = 60) -> None:
    """Waits until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"did not come true in {seconds} s"
        time.sleep(0.5)
