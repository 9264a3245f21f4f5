from __future__ import annotations

from dataclasses import replace

import pytest

from atelier import base_model
from atelier.compiler.profile import resolve
from atelier.compiler.spec import CompileSpec
from atelier.engines.fingerprint import Fingerprint
from atelier.engines.manifest import Backend, Precision
from atelier.errors import AtelierError, Status
from atelier.graphs.facts import read_facts

FACTS = read_facts(base_model.folder())
SPEC = CompileSpec(model="artifacts/x")
CPU = Fingerprint(
    device="cpu", product="cpu-x86-64-v4", capability="avx2,avx512_bf16", torch="2", backends={"inductor": "2", "openvino": "1"}
)
A10 = Fingerprint(device="cuda", product="NVIDIA-A10", capability="8.6", driver="580", torch="2", backends={"inductor": "2+cu130"})


def error_of(spec: CompileSpec, fingerprint: Fingerprint) -> AtelierError:
    with pytest.raises(AtelierError) as caught:
        resolve(spec, facts=FACTS, fingerprint=fingerprint)
    return caught.value


def test_a_processor_compiles_with_openvino_in_a_precision_that_is_measured() -> None:
    target = resolve(SPEC, facts=FACTS, fingerprint=CPU)
    assert (target.backend, target.precision) == (Backend.OPENVINO, None)
    assert target.candidates() == (Precision.BF16, Precision.FP32)
    assert (target.profile.width, target.profile.height) == (128, 128)
    assert target.profile.batch_sizes == (2, 4, 8, 16)


def test_large_pictures_on_a_processor_get_few_batches() -> None:
    assert resolve(replace(SPEC, width=512, height=512), facts=FACTS, fingerprint=CPU).profile.batch_sizes == (2, 4)
    assert resolve(replace(SPEC, width=512, height=512), facts=FACTS, fingerprint=A10).profile.batch_sizes == (2, 4, 8, 16)


def test_a_processor_without_openvino_or_bf16_takes_inductor_in_fp32() -> None:
    target = resolve(SPEC, facts=FACTS, fingerprint=replace(CPU, capability="avx2", backends={"inductor": "2"}))
    assert (target.backend, target.candidates()) == (Backend.INDUCTOR, (Precision.FP32,))


def test_a_gpu_compiles_with_inductor_in_bf16_or_where_it_is_old_in_fp16() -> None:
    target = resolve(SPEC, facts=FACTS, fingerprint=A10)
    assert (target.backend, target.precision) == (Backend.INDUCTOR, Precision.BF16)
    assert resolve(SPEC, facts=FACTS, fingerprint=replace(A10, capability="7.5")).precision is Precision.FP16


def test_bf16_is_refused_where_the_processor_has_it_not() -> None:
    error = error_of(replace(SPEC, precision=Precision.BF16), replace(CPU, capability="avx2"))
    assert (error.status, error.reason) == (Status.FAILED_PRECONDITION, "PRECISION_NOT_SUPPORTED")


def test_a_backend_that_is_not_installed_is_refused_with_those_that_are() -> None:
    error = error_of(replace(SPEC, backend=Backend.OPENVINO), replace(CPU, backends={"inductor": "2"}))
    assert (error.status, error.reason) == (Status.FAILED_PRECONDITION, "BACKEND_NOT_INSTALLED")
    assert "there are inductor" in error.message


def test_a_size_that_the_unet_cannot_make_is_refused() -> None:
    spec = replace(SPEC, width=192, height=64)
    with pytest.raises(AtelierError) as caught:
        resolve(spec, facts=replace(FACTS, unet_factor=16), fingerprint=CPU)
    assert [violation.field for violation in caught.value.violations] == ["profile.width"]


def test_a_models_own_size_for_which_there_is_no_engine_is_named() -> None:
    with pytest.raises(AtelierError) as caught:
        resolve(SPEC, facts=replace(FACTS, width=480), fingerprint=CPU)
    assert [(v.field, v.description) for v in caught.value.violations] == [
        ("profile.width", "must be a multiple of 64 between 64 and 2048, got 480")
    ]
