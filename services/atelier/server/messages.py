"""Words and messages that gateway, replicas and the Server service share. Imports neither torch nor ray."""

from __future__ import annotations

from atelier.engines.fingerprint import Fingerprint
from atelier.v1 import image_pb2, server_pb2

SAMPLER_WORDS: dict[int, str] = {
    image_pb2.SAMPLER_EULER: "EULER",
    image_pb2.SAMPLER_EULER_A: "EULER_A",
    image_pb2.SAMPLER_DDIM: "DDIM",
    image_pb2.SAMPLER_DPMPP_2M: "DPMPP_2M",
    image_pb2.SAMPLER_UNIPC: "UNIPC",
}
ENGINE_WORDS = ("eager", "compiled", "bound")
"""By eager PyTorch, by an engine that takes the weights with each call, by one that was bound to them."""


def fingerprint_to_message(fingerprint: Fingerprint) -> server_pb2.Fingerprint:
    """A fingerprint as the API shows it."""
    return server_pb2.Fingerprint(
        device=fingerprint.device,
        product=fingerprint.product,
        capability=fingerprint.capability,
        driver=fingerprint.driver,
        torch=fingerprint.torch,
        backends=dict(fingerprint.backends),
    )


def fingerprint_from_message(message: server_pb2.Fingerprint) -> Fingerprint:
    """The fingerprint that a replica has reported."""
    return Fingerprint(
        device=message.device,
        product=message.product,
        capability=message.capability,
        driver=message.driver,
        torch=message.torch,
        backends=dict(message.backends),
    )


def engine_word(engine: str) -> str:
    """How a picture was computed, of ENGINE_WORDS, by what stands in its `engine`."""
    eager, compiled, bound = ENGINE_WORDS
    return eager if engine == eager else bound if engine.endswith("+bound") else compiled
