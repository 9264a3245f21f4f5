"""Every command that the chart writes, in pods, hooks and notes, is one that the program in that image understands."""

from __future__ import annotations

import re
import shlex
from typing import Any

import click
import pytest
import typer

from atelier.cli.command import GLOBALS, build
from atelier.kubernetes import credentials, ray_certificate
from chart.rendering import PROFILES, notes, profile, values_of

COMMAND: Any = typer.main.get_command(build())
MODULES = {"atelier.kubernetes.credentials": credentials.main, "atelier.kubernetes.ray_certificate": ray_certificate.main}


def understood(line: str) -> None:
    """Whether `atelier` takes a line, without doing it."""
    words, position = shlex.split(line)[1:], 0
    while position < len(words):  # flags that may stand anywhere are taken out before the command looks
        if words[position] in GLOBALS:
            del words[position : position + 1 + GLOBALS[words[position]]]
        else:
            position += 1
    name = words.pop(0)
    try:
        COMMAND.commands[name].make_context(name, words, resilient_parsing=False)
    except click.ClickException as error:
        pytest.fail(f"{line}: {error.format_message()}")


@pytest.mark.parametrize("name", PROFILES)
def test_services_hooks_and_init_containers_are_started_as_they_can_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    seen = set()
    for pod in profile(name).pods():
        for container in pod.own:
            command = container.get("command", [])
            if not command:
                understood(shlex.join(["atelier", *container["args"]]))
            elif command[-1] in MODULES:
                words = [word.replace("$(POD_IP)", "10.0.0.7") for word in container["args"]]
                with pytest.raises(SystemExit) as ended:
                    MODULES[command[-1]](words)
                # Outside of a pod neither has what it needs; a number would be the exit code of words that it does not know.
                assert str(ended.value.code).startswith("error: "), ended.value.code
                seen.add(command[-1])
    assert credentials.__name__ in seen and (ray_certificate.__name__ in seen) is (name == "kuberay")


@pytest.mark.parametrize("name", ["default", "kuberay", "gpu"])
def test_ray_takes_the_flags_of_head_and_nodes(name: str) -> None:
    from ray.scripts.scripts import start

    for component in ("ray-head", "ray-node"):
        for pod in profile(name).pods(component):
            container = pod.container(component)
            words = [*container["command"], *container["args"]]
            assert words[:2] == ["ray", "start"]
            given = start.make_context("start", words[2:]).params
            assert given["block"] and given["head"] is (component == "ray-head")
            assert (given["num_cpus"] == 0) is (component == "ray-head")
            # Each port of its own, and none in the range of the processes that it starts.
            ports = [value for key, value in given.items() if key.endswith("port") and key not in ("min_worker_port", "max_worker_port")]
            taken = [int(port) for port in ports if port]
            assert len(taken) == len(set(taken))
            assert not any(given["min_worker_port"] <= port <= given["max_worker_port"] for port in taken)


@pytest.mark.parametrize("name", PROFILES)
def test_lines_of_the_notes_can_be_typed(name: str) -> None:
    for line in re.findall(r"^  (atelier .*)$", notes(values_of(name)), re.MULTILINE):
        understood(line)


def test_lines_of_hook_and_test_are_understood() -> None:
    rendered = profile("ha")
    lines = []
    for pod in rendered.pods("client"):
        script = pod.spec["containers"][0]["args"][0]
        lines += re.findall(r"atelier [^;]*?(?=;| && |$)", script, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        understood(re.sub(r"\$\{3:\+(--pool) \"\$3\"\}", r"\1 pools/first", line))
