"""templates/ray/head.yaml"""

from __future__ import annotations

from chart.rendering import profile, render


def test_the_head_runs_no_replica_and_is_never_there_twice() -> None:
    deployment = profile("default").one("Deployment", "atelier-ray-head")["spec"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")
    words = profile("default").pod("ray-head").container("ray-head")["args"]
    assert {"--num-cpus=0", "--num-gpus=0", "--port=6379", "--dashboard-port=8265", "--disable-usage-stats"} <= set(words)


def test_ray_asks_everybody_for_its_token() -> None:
    for component in ("ray-head", "ray-node"):
        pod = profile("default").pod(component)
        environment = {one["name"]: one.get("value") for one in pod.container(component)["env"]}
        assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN_PATH"]) == ("token", "/etc/atelier/ray/token")
        assert pod.volume("ray")["secret"]["secretName"] == "atelier-ray"


def test_with_tls_each_pod_gets_a_certificate_and_only_what_issues_it_sees_the_authority_s_key() -> None:
    rendered = render({"ray": {"tls": True}})
    for component, names in (
        ("ray-head", ["atelier-ray-head", "atelier-ray-head.studio.svc", "atelier-ray-head.studio.svc.cluster.local"]),
        ("ray-node", []),
    ):
        pod = rendered.pod(component)
        certificate = pod.spec["initContainers"][0]
        assert certificate["args"] == ["--host=$(POD_IP)", *(f"--host={name}" for name in names)]
        assert [one["name"] for one in pod.containers if "ray-ca" in str(one.get("volumeMounts"))] == ["certificate"]
        environment = {one["name"]: one.get("value") for one in pod.container(component)["env"]}
        assert environment["RAY_USE_TLS"] == "1" and environment["RAY_TLS_CA_CERT"] == "/etc/atelier/ray-tls/ca.crt"
        assert "emptyDir" in pod.volume("ray-tls")


def test_shared_memory_is_large_enough_for_ray_s_objects() -> None:
    for component in ("ray-head", "ray-node"):
        pod = render({"ray": {"objectStoreBytes": 1073741824}}).pod(component)
        assert "--object-store-memory=1073741824" in pod.container(component)["args"]
        assert pod.volume("shm")["emptyDir"] == {"medium": "Memory", "sizeLimit": str(1073741824 + 2**26)}
