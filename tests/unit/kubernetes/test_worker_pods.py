"""What is seen of a worker's Kubernetes Job, in sentences."""

from __future__ import annotations

import json
from typing import Any

from kubernetes import client

from atelier.jobs.launcher import End
from atelier.kubernetes.worker_pods import left_of, lines_of, sight_of

TIME = "2026-11-25T10:00:00Z"


def model(kind: str, content: dict[str, Any]) -> Any:
    read: Any = client.ApiClient().deserialize
    return read(json.dumps(content), kind, "application/json")


def job(*conditions: str, deleted: bool = False, suspend: bool = False, reason: str = "BackoffLimitExceeded") -> Any:
    metadata = {"name": "j", "creationTimestamp": TIME} | ({"deletionTimestamp": TIME} if deleted else {})
    found = [
        {"type": each, "status": "True", "reason": reason, "message": "Job has reached the specified backoff limit"} for each in conditions
    ]
    spec = {"suspend": suspend, "template": {}}
    return model("V1Job", {"metadata": metadata, "spec": spec, "status": {"conditions": found}})


def pod(phase: str, **status: Any) -> Any:
    spec = {"containers": [{"name": "worker", "image": "i", "resources": {"limits": {"memory": "6Gi"}}}]}
    return model("V1Pod", {"metadata": {"name": "p", "creationTimestamp": TIME}, "spec": spec, "status": {"phase": phase, **status}})


def container(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "worker", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}]


def event(reason: str, message: str) -> Any:
    metadata = {"name": "e", "namespace": "n"}
    return model("CoreV1Event", {"metadata": metadata, "involvedObject": {"name": "p"}, "reason": reason, "message": message})


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


def test_a_job_whose_pods_are_refused_says_why_without_the_name_of_a_pod_that_there_is_not() -> None:
    events = [event("FailedCreate", f'Error creating: pods "j-{each}" is forbidden: exceeded quota: gpus') for each in ("abcde", "fghij")]
    sight = sight_of(job(), [], events)
    assert sight.waits_for == "exceeded quota: gpus" and sight.said == ("exceeded quota: gpus",)


def test_a_job_that_its_queue_holds_back_says_so() -> None:
    assert "its queue has not let it in" in sight_of(job(suspend=True), [], []).waits_for


def test_tries_by_other_ports_are_one_sentence() -> None:
    events = [event("Failed", f"dial udp 10.0.0.5:{port}->10.0.0.10:53: i/o timeout") for port in (40123, 51234)]
    assert sight_of(job(), [pod("Pending")], events).said == ("dial udp 10.0.0.5->10.0.0.10:53: i/o timeout",)


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


def test_a_pod_that_ended_well_without_a_word_is_a_failure() -> None:
    silent = sight_of(job("Complete"), [pod("Succeeded", containerStatuses=container(terminated={"exitCode": 0}))], []).end
    assert silent is not None and silent.counts


def test_a_pod_that_somebody_removed_is_no_failure_but_one_that_took_too_long_is() -> None:
    gone = sight_of(job("Failed"), [], []).end
    assert gone is not None and "the worker's pod is gone" in gone.reason and not gone.counts
    late = sight_of(job("Failed", reason="DeadlineExceeded"), [], []).end
    assert late is not None and late.counts


def test_a_pod_that_kubernetes_takes_away_is_no_failure_and_said() -> None:
    evicted = pod(
        "Failed",
        conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}],
        containerStatuses=container(terminated={"exitCode": 137, "reason": "Error"}),
    )
    sentence = "Kubernetes took the worker's pod away: EvictionByEvictionAPI: Eviction API: evicting"
    goes_on = sight_of(job(), [evicted], [])
    assert (goes_on.runs, goes_on.said, goes_on.end) == (False, (sentence,), None)
    assert sight_of(job("Failed"), [evicted], []).end == End(reason=sentence, counts=False)


def test_what_stands_beside_the_worker_does_not_speak_for_it_and_what_comes_before_it_does() -> None:
    beside = {**container(terminated={"exitCode": 1})[0], "name": "proxy"}
    both = pod("Failed", containerStatuses=[beside, *container(terminated={"exitCode": 143})])
    end = sight_of(job("Failed"), [both], []).end
    assert end is not None and end.reason == "the worker made room"
    first = {**container(terminated={"exitCode": 3})[0], "name": "fetch"}
    unbegun = pod("Failed", initContainerStatuses=[first], containerStatuses=container(waiting={"reason": "PodInitializing"}))
    end = sight_of(job("Failed"), [unbegun], []).end
    assert end is not None and "fetch before it ended with exit code 3" in end.reason


def test_a_job_is_over_when_the_news_of_its_pods_are_here_too() -> None:
    assert sight_of(job("Failed"), [pod("Running")], []).end is None


def test_a_job_that_is_being_deleted_has_not_ended_and_one_that_was_has_when_its_pods_have() -> None:
    assert sight_of(job("Failed", deleted=True), [], []).end is None
    assert left_of([pod("Running")]).end is None
    end = left_of([pod("Failed")]).end
    assert end is not None and "was deleted" in end.reason and not end.counts


def test_json_lines_of_a_log_become_lines_for_people() -> None:
    line = json.dumps({"level": "ERROR", "message": "the job failed", "exception": "Traceback...\nValueError: no"})
    assert lines_of(f"{line}\nplain\n\n") == ["ERROR the job failed ValueError: no", "plain"]
