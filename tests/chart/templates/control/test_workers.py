"""templates/control/workers.yaml"""

from __future__ import annotations

import json

from chart.rendering import WORKERS, profile


def test_each_service_s_worker_runs_its_own_image_and_module() -> None:
    for service in WORKERS:
        [container] = profile("default").worker(service)["spec"]["template"]["spec"]["containers"]
        assert (container["name"], container["image"]) == ("worker", f"atelier/{service}:0.1.0")
        assert container["command"] == ["python", "-m", f"atelier.{service}"]


def test_a_job_is_one_pod_that_nobody_but_the_ledger_counts() -> None:
    for service in WORKERS:
        spec = profile("default").worker(service)["spec"]
        assert (spec["backoffLimit"], spec["podReplacementPolicy"], spec["template"]["spec"]["restartPolicy"]) == (0, "Failed", "Never")
        [rule] = spec["podFailurePolicy"]["rules"]
        assert rule == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        assert spec["ttlSecondsAfterFinished"] == 600


def test_a_worker_has_neither_the_ledger_nor_any_secret_but_the_store_s() -> None:
    for name in ("default", "ha"):
        for service in WORKERS:
            pod = profile(name).worker(service)["spec"]["template"]["spec"]
            assert not [one for one in pod["volumes"] if "secret" in one]
            [container] = pod["containers"]
            assert not {one["name"] for one in container["env"]} & {"ATELIER_LEDGER", "ATELIER_TOKEN_FILE", "ATELIER_SIGNING_KEY_FILE"}
            assert container.get("envFrom", []) == ([{"secretRef": {"name": "atelier-s3"}}] if name == "ha" else [])


def test_jobs_go_to_a_queue_of_kueue_and_to_the_release_s_nodes() -> None:
    assert profile("gpu").worker("trainer")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    pod = profile("everything").worker("compiler")["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"example.org/disk": "ssd"} and pod["priorityClassName"] == "high"
    assert pod["tolerations"] == [{"key": "studio", "operator": "Exists"}] and pod["runtimeClassName"] == "gvisor"


def test_jobs_go_with_the_object_that_they_are_made_from() -> None:
    [owner] = profile("default").worker("trainer")["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("ConfigMap", "atelier-workers")
    assert "atelier-workers" in profile("default").names("ConfigMap")


def test_it_takes_as_many_threads_as_it_may_have_cpus() -> None:
    [container] = profile("default").worker("trainer")["spec"]["template"]["spec"]["containers"]
    assert {"OMP_NUM_THREADS"} <= {one["name"] for one in container["env"] if "limits.cpu" in json.dumps(one)}
