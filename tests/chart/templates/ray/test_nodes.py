"""templates/ray/nodes.yaml"""

from __future__ import annotations

from chart.rendering import profile


def node(pool: str) -> tuple[dict[str, object], list[str]]:
    [pod] = [one for one in profile("gpu").pods("ray-node") if one.labels["atelier.dev/pool"] == pool]
    return pod.spec, pod.container("ray-node")["args"]


def test_a_pool_s_nodes_go_where_its_product_is_and_tell_ray_so() -> None:
    spec, words = node("h100")
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "node.example.org/tier": "large"}
    assert "--labels=atelier.dev/pool=h100,atelier.dev/gpu=NVIDIA-H100-80GB-HBM3" in words and "--num-gpus=2" in words
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}]


def test_devices_are_asked_for_by_the_resource_that_the_pool_names() -> None:
    def limits(pool: str) -> dict[str, object]:
        [container] = node(pool)[0]["containers"]  # type: ignore[misc]
        return dict(container["resources"]["limits"])

    assert limits("a10")["nvidia.com/gpu"] == 1 and limits("h100")["nvidia.com/gpu"] == 2
    assert limits("mig")["nvidia.com/mig-3g.20gb"] == 1 and "nvidia.com/gpu" not in limits("mig")
    assert not [key for key in limits("claimed") if "gpu" in key]
    assert node("claimed")[0]["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "one-l40s"}]
    assert node("mig")[0]["tolerations"] == [{"key": "nvidia.com/mig-3g.20gb", "operator": "Exists", "effect": "NoSchedule"}]


def test_a_pool_for_jobs_alone_has_no_nodes() -> None:
    assert profile("gpu").names("Deployment") == {
        "atelier-control", "atelier-ray-head", "atelier-pool-a10", "atelier-pool-h100", "atelier-pool-mig", "atelier-pool-claimed",
    }  # fmt: skip


def test_a_cpu_pool_goes_anywhere_and_has_no_device() -> None:
    pod = profile("default").pod("ray-node")
    assert "nodeSelector" not in pod.spec and "tolerations" not in pod.spec
    assert {"--labels=atelier.dev/pool=cpu,atelier.dev/gpu=cpu", "--num-gpus=0", "--num-cpus=2"} <= set(pod.container("ray-node")["args"])


def test_the_server_alone_sets_how_many_there_are_and_no_two_release_a_gpu_late() -> None:
    deployment = profile("gpu").one("Deployment", "atelier-pool-a10")["spec"]
    assert "replicas" not in deployment and deployment["strategy"] == {"type": "Recreate"}


def test_a_node_is_ready_while_it_has_a_replica_and_alive_while_ray_is() -> None:
    container = profile("default").pod("ray-node").container("ray-node")
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/api/local_raylet_healthz"


def test_an_upgrade_of_the_chart_leaves_ray_s_pods_alone() -> None:
    for pod in (*profile("default").pods("ray-node"), *profile("default").pods("ray-head")):
        assert set(pod.annotations) <= {"checksum/replica"}
        assert "helm.sh/chart" not in pod.labels and "app.kubernetes.io/version" not in pod.labels
