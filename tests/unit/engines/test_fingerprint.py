from __future__ import annotations

from dataclasses import replace

import pytest

from atelier.engines.fingerprint import Fingerprint, is_of
from atelier.errors import AtelierError, Status

MACHINE = Fingerprint(
    device="cpu",
    product="cpu-x86-64-v4",
    capability="avx2,avx512f",
    torch="2.14.1",
    backends={"inductor": "2.14.1", "openvino": "2026.4.1"},
)


def test_an_engine_of_another_machine_is_refused_with_wanted_and_found() -> None:
    engine = replace(MACHINE, product="cpu-x86-64-v3", capability="avx2").only("openvino")
    with pytest.raises(AtelierError) as caught:
        engine.check(MACHINE)
    error = caught.value
    assert (error.status, error.reason) == (Status.FAILED_PRECONDITION, "ENGINE_FINGERPRINT_MISMATCH")
    assert error.metadata == {
        "wanted_product": "cpu-x86-64-v3",
        "found_product": "cpu-x86-64-v4",
        "wanted_capability": "avx2",
        "found_capability": "avx2,avx512f",
    }
    assert "product cpu-x86-64-v3 (found cpu-x86-64-v4)" in error.message


def test_another_version_of_the_backend_counts() -> None:
    wanted = MACHINE.only("openvino")
    found = replace(MACHINE, backends={"inductor": "2.14.1", "openvino": "2026.5.0"})
    assert wanted.differences(found) == {"openvino": ("2026.4.1", "2026.5.0")}
    assert wanted.differences(replace(MACHINE, backends={})) == {"openvino": ("2026.4.1", "none")}


def test_backends_that_an_engine_does_not_use_do_not_count() -> None:
    MACHINE.only("openvino").check(replace(MACHINE, backends={"openvino": "2026.4.1", "tensorrt": "11.1"}))


def test_a_gpu_of_the_same_capability_is_another_product() -> None:
    a10 = Fingerprint(device="cuda", product="NVIDIA-A10", capability="8.6", driver="580", torch="2.14.1")
    assert a10.differences(replace(a10, product="NVIDIA-A40")) == {"product": ("NVIDIA-A10", "NVIDIA-A40")}
    assert a10.differences(replace(a10, driver="590")) == {"driver": ("580", "590")}


def test_keys_are_equal_where_fingerprints_are() -> None:
    again = Fingerprint.from_json({**MACHINE.to_json(), "backends": dict(reversed(MACHINE.backends.items()))})
    assert again.key == MACHINE.key
    assert replace(MACHINE, torch="2.15.0").key != MACHINE.key


def test_labels_name_the_product_alone() -> None:
    assert MACHINE.label == "cpu"
    assert replace(MACHINE, device="cuda", product="NVIDIA-" + "X" * 80).label == "NVIDIA-" + "X" * 56


def test_a_backend_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="there is no tensorrt here, only inductor, openvino"):
        MACHINE.only("tensorrt")


def test_a_device_is_known_under_its_nodes_label() -> None:
    assert is_of("NVIDIA-A10", "NVIDIA-A10") and is_of("NVIDIA-A10-SHARED", "NVIDIA-A10") and is_of("cpu", "cpu")
    assert is_of("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb")
    assert not is_of("NVIDIA-A10", "NVIDIA-A100-SXM4-80GB") and not is_of("NVIDIA-A10", "cpu")
