"""What the accounts of a release may do and, tried on the real API server, what they may not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.kubectl import Kubectl
from cluster.release import NAME, Release

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LAUNCHERS = {*((verb, "jobs") for verb in ("create", "get", "list", "watch", "delete")), ("get", "pods/log")}
LOOKING = {(verb, kind) for verb in ("get", "list", "watch") for kind in ("pods", "events")}
OWNER = {("get", f"configmaps={NAME}-workers")}
SCALE = {("patch", f"deployments/scale={NAME}-pool-cpu")}
ALLOWED: dict[str, set[tuple[str, str]]] = {
    "server": {*LOOKING, *SCALE},
    **{service: {*LAUNCHERS, *LOOKING, *OWNER} for service in ("trainer", "converter", "compiler")},
    "worker": set(),
    "ray-head": set(),
    "ray-node": set(),
    "client": set(),
}
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete")
KINDS = (
    "pods", "pods/log", "pods/exec", "events", "jobs", "secrets", "configmaps", "deployments", "deployments/scale", "serviceaccounts",
    "serviceaccounts/token", "roles", "rolebindings", f"secrets={NAME}-signing", f"secrets={NAME}-ca", f"configmaps={NAME}-workers",
    f"deployments={NAME}-server", f"deployments/scale={NAME}-pool-cpu", f"deployments/scale={NAME}-server",
)  # fmt: skip
GROUPS = {"jobs": "batch", "deployments": "apps", "roles": "rbac.authorization.k8s.io", "rolebindings": "rbac.authorization.k8s.io"}


@pytest.fixture
def release(kubectl: Kubectl, tmp_path: Path, image_values: dict[str, object]) -> Release:
    """Its accounts and Roles alone: nothing has to run for them."""
    values = {**image_values, "ledger": {"url": "postgresql://nobody@nowhere/none"}, "store": {"url": "s3://none/none"}}
    release = Release(kubectl, tmp_path, values=values)
    rendered = yaml.safe_load_all(release.helm("template", NAME, str(release.chart), "-f", str(release.write()), "--no-hooks"))
    kubectl.apply(*(one for one in rendered if one and one["kind"] in ("ServiceAccount", "Role", "RoleBinding")))
    return release


def test_every_account_may_do_what_it_needs_and_nothing_else(release: Release) -> None:
    found = release.kubectl("get", "serviceaccounts", "-o", "name").split()
    accounts = {name.removeprefix(f"serviceaccount/{NAME}-") for name in found} - {"serviceaccount/default"}
    assert accounts == set(ALLOWED)
    questions = [(account, verb, kind) for account in sorted(accounts) for verb in VERBS for kind in KINDS]
    answers = ask(release, questions)
    wrong = [question for question, yes in answers.items() if yes is not allowed(*question)]
    assert not wrong and len(answers) == len(questions)


def allowed(account: str, verb: str, kind: str) -> bool:
    """Whether a rule names it, or all objects of its kind."""
    return bool(ALLOWED[account] & {(verb, kind), (verb, kind.partition("=")[0])})


def ask(release: Release, questions: list[tuple[str, str, str]]) -> dict[tuple[str, str, str], bool]:
    """What the API server says to each."""
    namespace = release.kubectl.namespace
    reviews = []
    for account, verb, kind in questions:
        resource, _, name = kind.partition("=")
        resource, _, subresource = resource.partition("/")
        attributes = {
            "namespace": namespace, "verb": verb, "group": GROUPS.get(resource, ""), "resource": resource, "subresource": subresource,
            "name": name,
        }  # fmt: skip
        spec = {"user": f"system:serviceaccount:{namespace}:{NAME}-{account}", "resourceAttributes": attributes}
        reviews.append({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    command = release.kubectl.command("create", "-f", "-", "-o", "json")
    printed = subprocess.run(command, input=content, capture_output=True, text=True, check=True, timeout=300).stdout
    decoder, answers, at = json.JSONDecoder(), [], 0
    while at < len(printed.rstrip()):
        answer, at = decoder.raw_decode(printed, at)
        answers += answer.get("items", [answer])
        at += len(printed[at:]) - len(printed[at:].lstrip())
    return {question: answer["status"]["allowed"] for question, answer in zip(questions, answers, strict=True)}
