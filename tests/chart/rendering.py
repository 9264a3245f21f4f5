"""What the chart renders, once a session for each set of values; a test looks at objects and pods, not at text."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from chart import helm

CHART = Path(__file__).parents[2] / "charts" / "atelier"
NAMESPACE = "studio"
PROFILES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
WORKERS = ("trainer", "converter", "compiler")

Object = dict[str, Any]


class Refused(Exception):
    """Helm does not render these values; the text is what it says."""


@dataclass(frozen=True)
class Pod:
    """A pod that the release brings in whatever way: of a Deployment, a Job, a RayCluster, or a Job that a service makes."""

    where: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: Object

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def own(self) -> list[Object]:
        """Those of the chart: a user may add some."""
        return [one for one in self.containers if "atelier/" in one["image"]]

    def container(self, name: str) -> Object:
        return next(one for one in self.containers if one["name"] == name)

    def volume(self, name: str) -> Object:
        return next(one for one in self.spec["volumes"] if one["name"] == name)

    def mounts(self, container: str) -> dict[str, str]:
        """Volume -> where it is mounted."""
        return {one["name"]: one["mountPath"] for one in self.container(container)["volumeMounts"]}


class Rendered:
    """The objects of a release."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def all(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {one["metadata"]["name"] for one in self.all(kind)}

    def one(self, kind: str, name: str) -> Object:
        found = [one for one in self.all(kind) if one["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} {kind} {name}; there are {sorted(self.names(kind))}"
        return found[0]

    def pods(self, component: str = "") -> list[Pod]:
        """All pods, or those of a component."""
        return [pod for pod in self._pods() if component in ("", pod.component)]

    def pod(self, component: str) -> Pod:
        found = self.pods(component)
        assert len(found) == 1, f"{len(found)} pods of {component}"
        return found[0]

    def worker(self, service: str) -> Object:
        """The Job that a service makes of its manifest."""
        [maps] = [one for one in self.all("ConfigMap") if one["metadata"]["name"].endswith("-workers")]
        return dict(json.loads(maps["data"][f"{service}.json"]))

    def pools(self) -> Mapping[str, str]:
        """The files about pools."""
        [maps] = [one for one in self.all("ConfigMap") if one["metadata"]["name"].endswith("-pools")]
        return dict(maps["data"])

    def _pods(self) -> Iterator[Pod]:
        for one in self.objects:
            where = f"{one['kind']} {one['metadata']['name']}"
            if one["kind"] in ("Deployment", "Job"):
                yield _pod(where, one["spec"]["template"])
            elif one["kind"] == "Pod":
                yield _pod(where, one)
            elif one["kind"] == "RayCluster":
                yield _pod(f"{where} head", one["spec"]["headGroupSpec"]["template"])
                for group in one["spec"]["workerGroupSpecs"]:
                    yield _pod(f"{where} {group['groupName']}", group["template"])
        for service in WORKERS:
            yield _pod(f"worker of the {service}", self.worker(service)["spec"]["template"])


def profile(name: str, *, version: int = 4) -> Rendered:
    """A set of values of charts/atelier/ci."""
    return _rendered(str(CHART / "ci" / f"{name}-values.yaml"), version)


def values_of(name: str) -> dict[str, Any]:
    """The values of a profile."""
    return yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text()) or {}


def rendered_from(chart: Path, values: Mapping[str, Any]) -> Rendered:
    """What another chart, or a package of one, renders."""
    with _file(json.dumps(values)) as file:
        return Rendered(_parsed(_template(file, 4, (), str(chart))))


def render(values: Mapping[str, Any] | None = None, *, version: int = 4) -> Rendered:
    """Other values. Raises Refused."""
    return _rendered_of(json.dumps(values or {}), version)


def text(values: Mapping[str, Any] | None = None, *, version: int = 4, words: tuple[str, ...] = ()) -> str:
    """What `helm template` prints. Raises Refused."""
    with _file(json.dumps(values or {})) as file:
        return _template(file, version, words)


def notes(values: Mapping[str, Any] | None = None) -> str:
    """What `helm install` prints at its end, without a cluster (Helm 4 alone can). Raises Refused."""
    with _file(json.dumps(values or {})) as file:
        words = ("install", "atelier", str(CHART), "--namespace", NAMESPACE, "--values", file, "--dry-run=client", "--hide-notes=false")
        return _helm(4, *words).partition("NOTES:\n")[2]


@cache
def _rendered_of(values: str, version: int) -> Rendered:
    return Rendered(_parsed(text(json.loads(values), version=version)))


@cache
def _rendered(values: str, version: int) -> Rendered:
    return Rendered(_parsed(_template(values, version, ())))


def _template(values: str, version: int, words: tuple[str, ...], chart: str = str(CHART)) -> str:
    return _helm(version, "template", "atelier", chart, "--namespace", NAMESPACE, "--values", values, *words)


def _helm(version: int, *words: str) -> str:
    done = subprocess.run([helm.program(version), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


@contextmanager
def _file(content: str) -> Iterator[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(content)
        file.flush()
        yield file.name


def _parsed(given: str) -> list[Object]:
    return [one for one in yaml.load_all(given, Loader=_NoKeyTwice) if one]


def _pod(where: str, template: Object) -> Pod:
    metadata = template["metadata"]
    return Pod(where=where, labels=metadata["labels"], annotations=metadata.get("annotations", {}), spec=template["spec"])


class _NoKeyTwice(yaml.CSafeLoader):
    """Refuses a mapping that has a key twice, of which YAML would keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands there twice: {sorted({key for key in keys if keys.count(key) > 1})}"
        return super().construct_mapping(node, deep)
