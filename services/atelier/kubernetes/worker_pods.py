"""What is seen of a worker's Kubernetes Job and its pods, in the words of `jobs.launcher`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from atelier.jobs.launcher import PREEMPTED_EXIT_CODE, End, Sight

OF_JOB = "batch.kubernetes.io/job-name"
STARTING = ("ContainerCreating", "PodInitializing", "")
TELLING = ("FailedScheduling", "FailedCreate", "FailedMount", "FailedAttachVolume", "Failed", "BackOff", "Evicted", "Preempted")
"""Reasons of events that people should hear of."""
MAX_SENTENCE = 500


def sight_of(job: Any, pods: Sequence[Any], events: Iterable[Any]) -> Sight:
    """Of a Job that is there."""
    pods = sorted(pods, key=lambda pod: pod.metadata.creation_timestamp)
    names = {job.metadata.name, *(pod.metadata.name for pod in pods)}
    said = [_short(event.message) for event in events if event.involved_object.name in names and event.reason in TELLING and event.message]
    end = None if job.metadata.deletion_timestamp else end_of(job, pods)
    if end is not None:
        return Sight(runs=False, said=tuple(dict.fromkeys(said)), end=end)
    current = pods[-1] if pods else None
    if current is not None and current.status.phase == "Running":
        return Sight(runs=True, said=tuple(dict.fromkeys(said)))
    waits_for = _waits_for(current) if current is not None else (said[-1] if said else "")
    return Sight(runs=False, waits_for=waits_for, said=tuple(dict.fromkeys([*said, *([waits_for] if waits_for else [])])))


def end_of(job: Any, pods: Sequence[Any]) -> End | None:
    """How a Job ended; None while it goes on. A worker says its own end by `Complete`: who asks here has not heard it."""
    conditions = {one.type: one for one in job.status.conditions or () if one.status == "True"}
    if "Complete" in conditions:
        return End(reason="the worker's pod ended well without a word")
    if "Failed" not in conditions:
        return None
    ended = [end for end in map(_pod_end, reversed(pods)) if end is not None]
    failed = conditions["Failed"]
    return ended[0] if ended else End(reason=_short(f"the worker's pod is gone: {failed.message or failed.reason}"))


def lines_of(log: str) -> list[str]:
    """Lines of a worker's log for people: of JSON the level and the message, with the last line of a traceback."""
    return [_short(_line(line)) for line in log.splitlines() if line.strip()]


def _pod_end(pod: Any) -> End | None:
    for status in pod.status.container_statuses or ():
        ended = status.state.terminated if status.state else None
        if ended is None:
            continue
        if ended.reason == "OOMKilled":
            limit = ((pod.spec.containers[0].resources or _Nothing).limits or {}).get("memory", "what its node has")
            return End(reason=f"the worker used more memory than its limit ({limit}): give it more by `workers` in the chart's values")
        if ended.exit_code == PREEMPTED_EXIT_CODE:
            return End(reason="the worker made room", counts=False)
        if ended.exit_code > 128:
            return End(reason=f"the worker was ended by signal {ended.exit_code - 128}")
        return End(reason=f"the worker ended with exit code {ended.exit_code} and no word")
    if pod.status.reason:
        return End(reason=_short(f"the worker's pod was ended: {pod.status.reason} {pod.status.message or ''}".strip()))
    return None


def _waits_for(pod: Any) -> str:
    scheduled = next((one for one in pod.status.conditions or () if one.type == "PodScheduled"), None)
    if scheduled is not None and scheduled.status == "False":
        return _short(scheduled.message or scheduled.reason or "")
    for status in (*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())):
        waiting = status.state.waiting if status.state else None
        if waiting is not None and (waiting.reason or "") not in STARTING:
            return _short(": ".join(filter(None, [waiting.reason, waiting.message])))
    return ""


def _line(line: str) -> str:
    try:
        content = json.loads(line)
        exception = str(content.get("exception", "")).strip().splitlines()
        return " ".join(filter(None, [content["level"], content["message"], exception[-1] if exception else ""]))
    except (ValueError, TypeError, KeyError):
        return line


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= MAX_SENTENCE else f"{sentence[:MAX_SENTENCE]}..."


class _Nothing:
    limits: dict[str, str] | None = None
