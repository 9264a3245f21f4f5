"""templates/control/deployment.yaml"""

from __future__ import annotations

from chart.rendering import profile, render

SERVICES = ["server", "trainer", "converter", "compiler"]


def test_by_default_one_pod_has_all_services_and_is_never_there_twice() -> None:
    deployment = profile("default").one("Deployment", "atelier-control")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert [one["name"] for one in deployment["template"]["spec"]["containers"]] == SERVICES


def test_with_a_database_each_service_is_rolled_by_itself_without_a_gap() -> None:
    for service in SERVICES:
        deployment = profile("ha").one("Deployment", f"atelier-{service}")["spec"]
        assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        assert [one["name"] for one in deployment["template"]["spec"]["containers"]] == [service]
        assert {one["topologyKey"] for one in deployment["template"]["spec"]["topologySpreadConstraints"]} == {
            "kubernetes.io/hostname", "topology.kubernetes.io/zone",
        }  # fmt: skip


def test_tables_are_brought_up_to_date_before_any_service_starts() -> None:
    for name, component in (("default", "control"), ("ha", "server")):
        [migrate] = profile(name).pod(component).spec["initContainers"]
        assert migrate["args"] == ["migrate"]


def test_the_probes_ask_the_port_that_knows_neither_tls_nor_tokens() -> None:
    pod = profile("default").pod("control")
    for offset, service in enumerate(SERVICES):
        container = pod.container(service)
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert ports == {
            service: 7878 + offset,
            f"int-{service}": 7888 + offset,
            f"hlt-{service}": 7868 + offset,
            f"met-{service}": 7858 + offset,
        }
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["grpc"] == {"port": 7868 + offset}


def test_the_server_passes_on_inside_the_pod_or_through_services() -> None:
    def trainer(name: str, component: str) -> str:
        environment = profile(name).pod(component).container("server")["env"]
        return next(one["value"] for one in environment if one["name"] == "ATELIER_TRAINER")

    assert (trainer("default", "control"), trainer("ha", "server")) == ("localhost:7879", "atelier-trainer:7879")


def test_pods_are_replaced_when_what_they_are_told_of_pools_or_workers_changes() -> None:
    def checksums(values: dict[str, object]) -> dict[str, str]:
        return dict(render(values).pod("control").annotations)

    before = checksums({})
    assert checksums({"pools": [{"name": "cpu", "whenFull": "yield"}]})["checksum/pools"] != before["checksum/pools"]
    assert checksums({"workers": {"scratchSize": "9Gi"}})["checksum/workers"] != before["checksum/workers"]
    assert checksums({"server": {"extraEnv": [{"name": "TZ", "value": "UTC"}]}}) == before


def test_pictures_get_what_the_pod_s_end_leaves_them() -> None:
    pod = render({"control": {"drainSeconds": 2.5, "terminationGracePeriodSeconds": 120}}).pod("control")
    environment = {one["name"]: one.get("value") for one in pod.container("server")["env"]}
    assert (environment["ATELIER_DRAIN_SECONDS"], environment["ATELIER_GRACE_SECONDS"]) == ("2.5", "102.5")


def test_of_a_variable_that_is_set_twice_the_more_particular_counts() -> None:
    pod = render({
        "control": {"extraEnv": [{"name": "TZ", "value": "all"}, {"name": "ATELIER_DRAIN_SECONDS", "value": "9"}]},
        "server": {"extraEnv": [{"name": "TZ", "value": "own"}]},
    }).pod("control")  # fmt: skip
    for service, zone in (("server", "own"), ("trainer", "all")):
        environment = {one["name"]: one.get("value") for one in pod.container(service)["env"]}
        assert (environment["TZ"], environment["ATELIER_DRAIN_SECONDS"]) == (zone, "9")
