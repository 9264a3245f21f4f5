"""What Prometheus reads, and that docs, dashboard and alerts speak of nothing else."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from authority import Authority
from prometheus_client.parser import text_string_to_metric_families

from atelier import __version__
from atelier.collector import Sources, StandingCollector
from atelier.errors import unavailable
from atelier.jobs.job import NewJob, State
from atelier.jobs.ledger import JobLedger
from atelier.ledger import Database
from atelier.meters import UNMEASURED
from atelier.metrics import Metrics
from atelier.migrations import migrate
from atelier.parts import meters_for
from atelier.rpc.tls import Tls
from atelier.server.standing import Standing
from atelier.settings import SERVICES

ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
POOLS = Standing(replicas={"local": 1}, targets={"local": 2}, deployments={"READY": 3, "PENDING": 0, "FAILED": 0})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    migrate(database)
    yield database
    database.close()


@contextmanager
def scraped(database: Database, **given: Any) -> Iterator[tuple[Metrics, Callable[[], Any]]]:
    metrics = Metrics("127.0.0.1:0", services=SERVICES, pools=["local"])
    with metrics.served(database, **{"standing": lambda: POOLS, "tls": None, **given}) as port:
        yield metrics, lambda: list(families(port))


def families(port: int) -> Iterator[Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
        yield from text_string_to_metric_families(response.read().decode())


def samples(found: Any) -> Samples:
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in found for sample in family.samples}


def value(found: Any, name: str, **labels: str) -> float | None:
    return samples(found).get((name, tuple(sorted(labels.items()))))


def rows(heading: str) -> dict[str, tuple[str, str]]:
    """The tables of a section of the page: name -> labels and kind."""
    section = (ROOT / "docs" / "operating.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| `")]
    return {name: (labels, kind) for names, labels, kind, _ in cells for name in re.findall(r"`(\w+)`", names)}


def test_what_is_exported_is_in_the_table_and_the_other_way_round(ledger: Database, tmp_path: Path) -> None:
    tls = Tls(certificate=Authority(tmp_path).sign("server").certificate, ca=Authority(tmp_path).file)
    with scraped(ledger, tls=tls) as (metrics, scrape):
        metrics.call_began("/atelier.v1.Jobs/GetJob")
        metrics.call_ended("/atelier.v1.Jobs/GetJob", code="OK", seconds=0.01)
        found = scrape()
    exported = {}
    for family in found:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exported[name] = (labels, family.type)
    table = {name: row for name, row in rows("Metrics").items() if not name.startswith("ray_")}
    assert sorted(exported) == sorted(table)
    ours = {name: ({label for label in labels.split(", ") if label}, kind) for name, (labels, kind) in table.items() if kind}
    assert ours == {name: exported[name] for name in ours}


def test_calls_are_counted_by_method_and_status_and_what_no_service_has_is_other(ledger: Database) -> None:
    with scraped(ledger) as (metrics, scrape):
        for method in ("/atelier.v1.Jobs/GetJob", "/atelier.v1.Trainer/Ä", "/atelier.v1.Trainer/Nothing", "no method"):
            metrics.call_began(method)
            metrics.call_ended(method, code="NOT_FOUND", seconds=0.02)
        metrics.call_began("/atelier.v1.Images/Generate")
        found = scrape()
    assert value(found, "atelier_rpc_requests_total", grpc_service="atelier.v1.Jobs", grpc_method="GetJob", grpc_code="NOT_FOUND") == 1
    assert value(found, "atelier_rpc_requests_total", grpc_service="other", grpc_method="other", grpc_code="NOT_FOUND") == 3
    assert value(found, "atelier_rpc_duration_seconds_bucket", grpc_service="atelier.v1.Jobs", grpc_method="GetJob", le="0.025") == 1
    assert value(found, "atelier_rpc_in_flight", grpc_service="atelier.v1.Images", grpc_method="Generate") == 1
    assert value(found, "atelier_rpc_in_flight", grpc_service="atelier.v1.Jobs", grpc_method="GetJob") == 0
    assert value(found, "atelier_build_info", version=__version__) == 1


def test_series_that_alerts_ask_for_are_there_before_anything_happens(ledger: Database) -> None:
    with scraped(ledger) as (_, scrape):
        found = scrape()
    assert value(found, "atelier_jobs_ended_total", component="trainer", state="FAILED") == 0
    assert value(found, "atelier_job_attempts_lost_total", component="compiler") == 0
    assert value(found, "atelier_pictures_total", pool="local", engine="eager") == 0
    assert value(found, "atelier_jobs", component="converter", state="PENDING") == 0
    assert value(found, "atelier_job_oldest_pending_seconds", component="converter") == 0
    assert not [name for name, labels in samples(found) if name.endswith("_created") or ("component", "server") in labels]


def test_jobs_that_wait_and_run_are_counted_in_the_ledger(ledger: Database) -> None:
    jobs = JobLedger(ledger)
    for service in ("trainer", "trainer", "trainer", "elsewhere"):
        jobs.submit(NewJob(service=service, method="M", request_id="", body_sha256="", spec=b""))
    first, second, *_ = jobs.unended(["trainer"])
    attempt = jobs.claim(first.name).attempt
    jobs.cancel(second.name)
    time.sleep(0.05)
    with scraped(ledger) as (_, scrape):
        found = scrape()
        jobs.complete(first.name, attempt, state=State.SUCCEEDED)
        again = scrape()
    assert value(found, "atelier_jobs", component="trainer", state="RUNNING") == 1
    assert value(found, "atelier_jobs", component="trainer", state="PENDING") == 1
    assert 0.05 <= (value(found, "atelier_job_oldest_pending_seconds", component="trainer") or 0) < 60
    assert value(found, "atelier_jobs", component="elsewhere", state="PENDING") is None
    assert value(again, "atelier_jobs", component="trainer", state="RUNNING") == 1  # not asked again within seconds


def test_a_ledger_that_is_away_is_told_and_the_rest_is_still_there(ledger: Database) -> None:
    def away() -> Standing:
        raise unavailable("LEDGER_UNAVAILABLE", "the ledger does not answer")

    with scraped(ledger, standing=away) as (_, scrape):
        ledger.engine.dispose()
        Path(str(ledger.engine.url.database)).write_bytes(b"this is no database, is it")
        found = scrape()
    assert value(found, "atelier_ledger_up") == 0
    assert value(found, "atelier_build_info", version=__version__) == 1
    assert not [name for name, _ in samples(found) if name in ("atelier_jobs", "atelier_pool_replicas", "atelier_deployments")]


def test_what_does_not_answer_holds_a_scrape_up_for_seconds_only_and_is_not_asked_twice(ledger: Database) -> None:
    asked, go_on = [], threading.Event()

    def slow() -> Standing:
        asked.append(1)
        go_on.wait(30)
        return POOLS

    collector = StandingCollector(Sources(database=ledger, pools=slow, fresh_seconds=0, patience_seconds=0.2))
    begin = time.monotonic()
    names = [{metric.name for metric in collector.collect()} for _ in range(2)]
    assert time.monotonic() - begin < 5 and len(asked) == 1
    assert not any("atelier_pool_replicas" in each for each in names)
    go_on.set()
    assert "atelier_pool_replicas" in {metric.name for metric in collector.collect()}
    collector.close()


def test_pools_and_deployments_are_as_they_stand(ledger: Database) -> None:
    with scraped(ledger) as (_, scrape):
        found = scrape()
    assert value(found, "atelier_pool_replicas", pool="local") == 1
    assert value(found, "atelier_pool_target_replicas", pool="local") == 2
    assert value(found, "atelier_deployments", state="READY") == 3


def test_the_end_of_certificates_is_read_from_their_files(ledger: Database, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = Tls(certificate=authority.sign("server").certificate, ca=tmp_path / "gone.crt")
    with scraped(ledger, tls=tls) as (_, scrape):
        found = scrape()
    days = ((value(found, "atelier_certificate_expiry_timestamp_seconds", file="certificate") or 0) - time.time()) / 86400
    assert 0 < days < 4000
    assert value(found, "atelier_certificate_expiry_timestamp_seconds", file="ca") is None


def test_a_port_that_is_taken_is_one_clear_error(ledger: Database) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        metrics = Metrics(f"127.0.0.1:{taken.getsockname()[1]}", services=[], pools=[])
        with pytest.raises(OSError, match="ATELIER_METRICS_LISTEN"), metrics.served(ledger, standing=None, tls=None):
            pass


def test_without_an_address_nothing_is_measured(ledger: Database) -> None:
    assert meters_for(None, services=SERVICES, pools=["local"]) is UNMEASURED
    assert isinstance(meters_for("127.0.0.1:0", services=SERVICES, pools=["local"]), Metrics)
    UNMEASURED.job_ended("trainer", state="FAILED", seconds=1)
    with UNMEASURED.served(ledger, standing=None, tls=None):
        pass


def expressions() -> dict[str, str]:
    """What alerts and dashboard ask Prometheus."""
    chart = ROOT / "charts" / "atelier"
    rules = yaml.safe_load((chart / "rules.yaml").read_text())
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    for panel in json.loads((chart / "dashboards" / "atelier.json").read_text())["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel.get("targets", [])}
    return found


def test_alerts_and_dashboard_ask_only_for_what_there_is() -> None:
    table = {name: {label for label in labels.split(", ") if label} for name, (labels, _) in rows("Metrics").items()}
    ray = {"ray_serve_deployment_queued_queries", "ray_serve_replica_processing_queries"}
    ray |= {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"}
    asked = expressions()
    assert len(asked) > 40
    for place, expression in asked.items():
        names = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\b(?:atelier|ray|process)_\w+", expression)}
        assert names and names <= {*table, *ray}, place
        matched = set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", expression))
        grouped = {label.strip() for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in labels.split(",")}
        added = {"namespace", "instance", "le", "application", "GpuDeviceName"}
        assert matched | grouped <= set().union(*(table.get(name, set()) for name in names)) | added, place


def test_what_is_asked_of_ray_is_what_this_ray_says() -> None:
    package = Path(str(importlib.util.find_spec("ray").submodule_search_locations[0]))  # type: ignore[union-attr, index]
    source = (package / "serve" / "_private" / "replica.py").read_text() + (package / "serve" / "_private" / "router.py").read_text()
    source += (package / "dashboard" / "modules" / "reporter" / "reporter_agent.py").read_text()
    names = {name for expression in expressions().values() for name in re.findall(r"\bray_(?:serve|node)_\w+", expression)}
    assert sorted(name for name in names if f'"{name.removeprefix("ray_")}"' not in source) == []


def test_every_alert_says_what_to_do_and_stays_within_its_namespace() -> None:
    rules = yaml.safe_load((ROOT / "charts" / "atelier" / "rules.yaml").read_text())["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        asked = re.findall(r"\batelier_\w+", rule["expr"])
        assert rule["expr"].count('namespace="atelier"') == len(asked)


def test_panels_of_the_dashboard_lie_beside_each_other() -> None:
    panels = json.loads((ROOT / "charts" / "atelier" / "dashboards" / "atelier.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24 and not own & cells, panel["title"]
        cells |= own
