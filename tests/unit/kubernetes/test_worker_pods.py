"""What is seen of a worker's Kubernetes Job, in sentences."""

from __future__ import annotations

import json
from typing import Any

from kubernetes import client

from atelier.kubernetes.worker_pods import lines_of, sight_of

TIME = "2026-11-25T10:00:00Z"


def model(kind: str, content: dict[str, Any]) -> Any:
    read: Any = client.ApiClient().deserialize
    return read(json.dumps(content), kind, "application/json")


def job(*conditions: str, deleted: bool = False) -> Any:
    metadata = {"name": "j", "creationTimestamp": TIME} | ({"deletionTimestamp": TIME} if deleted else {})
    found = [{"type": each, "status": "True", "message": "Job has reached the specified backoff limit"} for each in conditions]
    return model("V1Job", {"metadata": metadata, "status": {"conditions": found}})


def pod(phase: str, **status: Any) -> Any:
    spec = {"containers": [{"name": "worker", "image": "i", "resources": {"limits": {"memory": "6Gi"}}}]}
    return model("V1Pod", {"metadata": {"name": "p", "creationTimestamp": TIME}, "spec": spec, "status": {"phase": phase, **status}})


def container(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "worker", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}]


def event(reason: str, message: str, name: str = "p") -> Any:
    return model(
        "CoreV1Event",
        {"metadata": {"name": "e", "namespace": "n"}, "involvedObject": {"name": name}, "reason": reason, "message": message},
    )


def test_a_pod_that_finds_no_node_says_the_schedulers_sentence() -> None:
    waits = pod("Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}])
    sight = sight_of(job(), [waits], [event("FailedScheduling", "0/3 nodes are available"), event("Scheduled", "to host")])
    assert (sight.runs, sight.waits_for, sight.said, sight.end) == (False, "0/3 nodes are available", ("0/3 nodes are available",), None)


def test_an_image_that_cannot_be_pulled_is_named() -> None:
    waits = pod(
        "Pending", containerStatuses=container(waiting={"reason": "ImagePullBackOff", "message": "back-off pulling atelier/trainer"})
    )
    assert sight_of(job(), [waits], []).waits_for == "ImagePullBackOff: back-off pulling atelier/trainer"
    starting = pod("Pending", containerStatuses=container(waiting={"reason": "ContainerCreating"}))
    assert sight_of(job(), [starting], []).waits_for == ""


def test_a_job_whose_pods_are_refused_says_why() -> None:
    sight = sight_of(job(), [], [event("FailedCreate", "exceeded quota: gpus", name="j"), event("FailedCreate", "another's", name="k")])
    assert sight.waits_for == "exceeded quota: gpus" and sight.said == ("exceeded quota: gpus",)


def test_a_pod_that_runs_is_heard_of_by_its_heartbeat_alone() -> None:
    assert sight_of(job(), [pod("Running")], []).runs


def test_ends_are_told_by_the_container() -> None:
    cases = {
        "used more memory than its limit (6Gi)": ({"exitCode": 137, "reason": "OOMKilled"}, True),
        "the worker made room": ({"exitCode": 143}, False),
        "ended by signal 9": ({"exitCode": 137, "reason": "Error"}, True),
        "exit code 2 and no word": ({"exitCode": 2, "reason": "Error"}, True),
    }
    for sentence, (terminated, counts) in cases.items():
        end = sight_of(job("Failed"), [pod("Failed", containerStatuses=container(terminated=terminated))], []).end
        assert end is not None and sentence in end.reason and end.counts is counts


def test_a_pod_that_is_gone_and_one_that_ended_well_without_a_word_are_failures() -> None:
    gone = sight_of(job("Failed"), [], []).end
    assert gone is not None and "the worker's pod is gone" in gone.reason and gone.counts
    silent = sight_of(job("Complete"), [pod("Succeeded", containerStatuses=container(terminated={"exitCode": 0}))], []).end
    assert silent is not None and silent.counts


def test_a_job_that_is_being_deleted_has_not_ended() -> None:
    assert sight_of(job("Failed", deleted=True), [], []).end is None


def test_json_lines_of_a_log_become_lines_for_people() -> None:
    line = json.dumps({"level": "ERROR", "message": "the job failed", "exception": "Traceback...\nValueError: no"})
    assert lines_of(f"{line}\nplain\n\n") == ["ERROR the job failed ValueError: no", "plain"]
