from __future__ import annotations

import json
from dataclasses import replace

from atelier.engines.fingerprint import Fingerprint
from atelier.engines.manifest import Backend, EngineManifest, Precision, engine_key, usable
from atelier.engines.profile import ShapeProfile

MACHINE = Fingerprint(device="cpu", product="cpu-x86-64-v4", capability="avx2", torch="2.14.1", backends={"openvino": "1", "inductor": "2"})
ENGINE = EngineManifest(
    graph="g" * 64,
    fingerprint=MACHINE.only("openvino"),
    backend=Backend.OPENVINO,
    precision=Precision.BF16,
    profile=ShapeProfile(width=128, height=128),
    benchmark={"speedup": 1.8},
)


def test_metadata_survives_json() -> None:
    assert EngineManifest.from_metadata(json.loads(json.dumps(ENGINE.to_metadata()))) == ENGINE


def test_an_engine_is_looked_up_by_what_it_is_for() -> None:
    key = engine_key(graph=ENGINE.graph, fingerprint=MACHINE, backend=Backend.OPENVINO, precision=Precision.BF16, profile=ENGINE.profile)
    assert key == ENGINE.key == ENGINE.to_metadata()["key"]
    assert key.endswith("/openvino/bf16/128x128-b2.4.8.16")


def test_usable_engines_come_fastest_first() -> None:
    faster = replace(ENGINE, precision=Precision.FP32, benchmark={"speedup": 2.5})
    other_graph = replace(ENGINE, graph="h" * 64)
    other_machine = replace(ENGINE, fingerprint=replace(ENGINE.fingerprint, torch="2.15.0"))
    found = usable([ENGINE, other_graph, faster, other_machine], graph=ENGINE.graph, fingerprint=MACHINE)
    assert found == [faster, ENGINE]
