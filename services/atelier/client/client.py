"""The Python client: all of Atelier behind one address."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc

from atelier.client.address import Address
from atelier.client.artifact_service import ArtifactService
from atelier.client.calls import Calls, Repetition
from atelier.client.deployment_service import DeploymentService
from atelier.client.job_service import JobService
from atelier.errors import invalid_field
from atelier.rpc.channel import channel
from atelier.rpc.tls import Tls
from atelier.v1 import (
    compiler_pb2,
    compiler_pb2_grpc,
    converter_pb2,
    converter_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    job_pb2,
    trainer_pb2,
    trainer_pb2_grpc,
)

Request = TypeVar(
    "Request", trainer_pb2.TrainRequest, trainer_pb2.PromoteRequest, converter_pb2.ConvertRequest, converter_pb2.MergeRequest,
    compiler_pb2.CompileRequest,
)  # fmt: skip


class Client:
    """Synchronous; safe to use from several threads. All methods raise `atelier.errors.AtelierError`.

    >>> with Client("127.0.0.1:7878", token) as atelier:
    ...     job = atelier.convert(ConvertRequest(source="az-octopus", to=FORMAT_LORA_WEBUI))
    ...     job = atelier.jobs.wait(job.name)
    """

    def __init__(self, target: str, token: str = "", *, tls: Tls | None = None, calls: Calls | None = None) -> None:
        """`target` is `host:port` or `https://host:port`; another machine's is encrypted unless `http://` says otherwise."""
        token = token.strip()  # as files end with a line break
        if not (token.isascii() and token.isprintable()):
            raise invalid_field("token", "a token is one line of ASCII; it is in keys/token of the server's data folder")
        address = Address(target, token, tls)
        credentials = (tls or Tls()).channel_credentials() if address.encrypted else None
        self._channel = channel(address.place, token=token, credentials=credentials)
        self._calls = calls or Calls(target=address.place, encrypted=address.encrypted)
        self.artifacts = ArtifactService(self._channel, self._calls)
        self.jobs = JobService(self._channel, self._calls)
        self.deployments = DeploymentService(self._channel, self._calls)
        self._trainer = trainer_pb2_grpc.TrainerStub(self._channel)
        self._converter = converter_pb2_grpc.ConverterStub(self._channel)
        self._compiler = compiler_pb2_grpc.CompilerStub(self._channel)
        self._images = image_pb2_grpc.ImagesStub(self._channel)

    def close(self) -> None:
        """Ends the connection; running streams end with it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def train(self, request: trainer_pb2.TrainRequest) -> job_pb2.Job:
        """Starts a training run; with `validate_only` gives the plan alone."""
        return self._submit(self._trainer.Train, request)

    def promote(self, request: trainer_pb2.PromoteRequest) -> job_pb2.Job:
        """Makes an earlier checkpoint of a run its result."""
        return self._submit(self._trainer.Promote, request)

    def convert(self, request: converter_pb2.ConvertRequest) -> job_pb2.Job:
        """Starts a conversion."""
        return self._submit(self._converter.Convert, request)

    def merge(self, request: converter_pb2.MergeRequest) -> job_pb2.Job:
        """Starts a merge of LoRAs into a model."""
        return self._submit(self._converter.Merge, request)

    def compile(self, request: compiler_pb2.CompileRequest) -> job_pb2.Job:
        """Starts a compilation."""
        return self._submit(self._compiler.Compile, request)

    def generate(
        self, request: image_pb2.GenerateRequest, *, timeout_seconds: float | None = None
    ) -> Iterator[image_pb2.GenerateProgress | image_pb2.GeneratedImage]:
        """Progress, then the pictures. A missing seed is drawn here, so that a call that was cut off gives the same pictures again.

        `timeout_seconds` counts for all tries together. Ending the iteration early stops the work within one step.
        """
        asked = image_pb2.GenerateRequest()
        asked.CopyFrom(request)
        if not asked.HasField("seed"):
            asked.seed = secrets.randbits(32)
        end = None if timeout_seconds is None else self._calls.clock() + timeout_seconds
        repetition = Repetition(calls=self._calls, idempotent=True, most=3, end=end)
        pictures = 0
        while True:
            stream = self._images.Generate(asked, timeout=None if end is None else end - self._calls.clock())
            try:
                for response in stream:
                    self._calls.answered.set()
                    pictures += response.HasField("image")
                    yield response.image if response.HasField("image") else response.progress
                return
            except grpc.RpcError as error:
                found = self._calls.error(error)
                if pictures:
                    raise found from None
                repetition.wait_or_raise(found)
            finally:
                stream.cancel()

    def _submit(self, method: Callable[..., job_pb2.Job], request: Request) -> job_pb2.Job:
        """Calls with a request id, so that a repeated call gives the same job."""
        asked = type(request)()
        asked.CopyFrom(request)
        asked.request_id = asked.request_id or secrets.token_hex(16)
        return self._calls.unary(method, asked, idempotent=True)
