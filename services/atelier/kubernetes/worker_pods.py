"""What is seen of a worker's Kubernetes Job and its pods, in the words of `jobs.launcher`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atelier.jobs.launcher import PREEMPTED_EXIT_CODE, End, Sight, describe
from atelier.kubernetes.manifest import CONTAINER

ENDED = ("Succeeded", "Failed")
OF_JOB = "batch.kubernetes.io/job-name"
STARTING = ("ContainerCreating", "PodInitializing", "")
TELLING = ("FailedScheduling", "FailedCreate", "FailedMount", "FailedAttachVolume", "Failed", "BackOff", "Evicted")
"""Reasons of events that people should hear of."""
CHANGING = ((re.compile(r":\d{4,5}->"), "->"), (re.compile(r'^(Error creating: )?pods "[^"]*" is forbidden: '), ""))
"""What makes two tries of the same thing two sentences: the port that a call went out by, the name of a pod that there is not."""
MAX_SENTENCE = 500


def sight_of(job: Any, pods: Sequence[Any], events: Iterable[Any]) -> Sight:
    """Of a Job that is there, of its pods and of events about them."""
    pods = sorted(pods, key=lambda pod: pod.metadata.creation_timestamp)
    said = [_sentence(event.message) for event in events if event.reason in TELLING and event.message]
    said += [f"Kubernetes took the worker's pod away: {why}" for why in map(_disruption, pods) if why]
    end = None if job.metadata.deletion_timestamp else end_of(job, pods)
    if end is not None:
        return Sight(runs=False, said=_once(said), end=end)
    current = pods[-1] if pods else None
    if current is not None and current.status.phase == "Running":
        return Sight(runs=True, said=_once(said))
    waits_for = _waits_for(current) if current is not None else _suspended(job) or (said[-1] if said else "")
    return Sight(runs=False, waits_for=waits_for, said=_once([*said, waits_for]))


def left_of(pods: Sequence[Any]) -> Sight:
    """Of a Job that was deleted: its worker has ended when its pods have, which may be writing a checkpoint still."""
    if any(pod.status.phase not in ENDED for pod in pods):
        return Sight(runs=True)
    return Sight(runs=False, end=End(reason="the worker's Kubernetes Job was deleted", counts=False))


def end_of(job: Any, pods: Sequence[Any]) -> End | None:
    """How a Job ended; None while it goes on. A worker says its own end by `Complete`: who asks here has not heard it."""
    conditions = {one.type: one for one in job.status.conditions or () if one.status == "True"}
    if "Complete" in conditions:
        return End(reason="the worker's pod ended well without a word")
    if "Failed" not in conditions or any(pod.status.phase not in ENDED for pod in pods):  # the last may be news that are on their way
        return None
    ended = [end for end in map(_pod_end, reversed(pods)) if end is not None]
    failed = conditions["Failed"]
    gone = End(reason=_short(f"the worker's pod is gone: {failed.message or failed.reason}"), counts=failed.reason == "DeadlineExceeded")
    return ended[0] if ended else gone


def lines_of(log: str) -> list[str]:
    """Lines of a worker's log for people: of JSON the level and the message, with the last line of a traceback."""
    return [_short(_line(line)) for line in log.splitlines() if line.strip()]


def _pod_end(pod: Any) -> End | None:
    if why := _disruption(pod):
        return End(reason=f"Kubernetes took the worker's pod away: {why}", counts=False)
    for status in reversed(_containers(pod)):
        ended = status.state.terminated if status.state else None
        if ended is not None and (status.name == CONTAINER or ended.exit_code):
            return _container_end(status.name, ended, _limits(pod))
    if pod.status.reason:
        return End(reason=_short(f"the worker's pod was ended: {pod.status.reason} {pod.status.message or ''}".strip()))
    return None


def _container_end(name: str, ended: Any, limits: Mapping[str, str]) -> End:
    if name != CONTAINER:
        return End(reason=f"the worker did not begin: {name} before it ended with exit code {ended.exit_code}")
    if ended.reason == "OOMKilled":
        limit = limits.get("memory", "what its node has")
        return End(reason=f"the worker used more memory than its limit ({limit}): give it more by `workers` in the chart's values")
    return describe(ended.exit_code if ended.exit_code <= 128 or ended.exit_code == PREEMPTED_EXIT_CODE else 128 - ended.exit_code)


def _disruption(pod: Any) -> str:
    """Why Kubernetes took a pod away that did nothing wrong (eviction, preemption, a node that is gone), which is no failure."""
    for one in pod.status.conditions or ():
        if one.type == "DisruptionTarget" and one.status == "True":
            return _short(": ".join(filter(None, [one.reason, one.message])))
    return ""


def _containers(pod: Any) -> list[Any]:
    """What has to end well for the worker to begin, and the worker itself, last; not what may have been put beside it."""
    own = [one for one in pod.status.container_statuses or () if one.name == CONTAINER]
    return [*(pod.status.init_container_statuses or ()), *own]


def _limits(pod: Any) -> dict[str, str]:
    own = next((one for one in pod.spec.containers if one.name == CONTAINER), None)
    return (own.resources.limits if own and own.resources else None) or {}


def _suspended(job: Any) -> str:
    return "its queue has not let it in yet (the Job is suspended)" if job.spec and job.spec.suspend else ""


def _waits_for(pod: Any) -> str:
    scheduled = next((one for one in pod.status.conditions or () if one.type == "PodScheduled"), None)
    if scheduled is not None and scheduled.status == "False":
        return _sentence(scheduled.message or scheduled.reason or "")
    for status in _containers(pod):
        waiting = status.state.waiting if status.state else None
        if waiting is not None and (waiting.reason or "") not in STARTING:
            return _sentence(": ".join(filter(None, [waiting.reason, waiting.message])))
    return ""


def _line(line: str) -> str:
    try:
        content = json.loads(line)
        exception = str(content.get("exception", "")).strip().splitlines()
        return " ".join(filter(None, [content["level"], content["message"], exception[-1] if exception else ""]))
    except (ValueError, TypeError, KeyError):
        return line


def _sentence(message: str) -> str:
    for pattern, instead in CHANGING:
        message = pattern.sub(instead, message)
    return _short(message)


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= MAX_SENTENCE else f"{sentence[:MAX_SENTENCE]}..."


def _once(sentences: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, sentences)))
