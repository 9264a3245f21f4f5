"""Calls every service behind one address: run here, or inside a pod, with TARGET, TOKEN_FILE and CA_FILE as arguments.

Prints what answered, a line a service. It stands alone, so that a pod of the control image can run it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from atelier.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    compiler_pb2,
    compiler_pb2_grpc,
    converter_pb2,
    converter_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)


def main(target: str, token_file: str, ca_file: str) -> None:
    """One call of each."""
    credentials = grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
    token = grpc.access_token_call_credentials(Path(token_file).read_text().strip())
    with grpc.secure_channel(target, grpc.composite_channel_credentials(credentials, token)) as channel:
        model = {"pretrained_model_name_or_path": "base", "instance_data_dir": "none", "instance_prompt": "a"}
        train = trainer_pb2.TrainRequest(method=trainer_pb2.METHOD_DREAMBOOTH_LORA, validate_only=True, **model)
        print("Trainer", _code(trainer_pb2_grpc.TrainerStub(channel).Train, train))
        print("Converter", _code(converter_pb2_grpc.ConverterStub(channel).Convert, converter_pb2.ConvertRequest(validate_only=True)))
        compile_it = compiler_pb2.CompileRequest(model="base", validate_only=True)
        print("Compiler", _code(compiler_pb2_grpc.CompilerStub(channel).Compile, compile_it))
        print("Server", _code(server_pb2_grpc.ServerStub(channel).ListPools, server_pb2.ListPoolsRequest()))
        print("Jobs", _code(job_pb2_grpc.JobsStub(channel).ListJobs, job_pb2.ListJobsRequest()))
        print("Artifacts", _code(artifact_pb2_grpc.ArtifactsStub(channel).GetArtifact, artifact_pb2.GetArtifactRequest(name="base")))
        picture = image_pb2.GenerateRequest(deployment="base", prompt="a fox", steps=1)
        print("Images", _code(lambda r, timeout: list(image_pb2_grpc.ImagesStub(channel).Generate(r, timeout=timeout)), picture))
        print("health", _code(health_pb2_grpc.HealthStub(channel).Check, health_pb2.HealthCheckRequest(service="atelier.v1.Trainer")))
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), timeout=30)
        print("reflection", ",".join(sorted(one.name for one in answer.list_services_response.service)))


def _code(call: object, request: object) -> str:
    try:
        call(request, timeout=60)  # type: ignore[operator]
        return "OK"
    except grpc.RpcError as error:
        return str(error.code().name)


if __name__ == "__main__":
    main(*sys.argv[1:])
