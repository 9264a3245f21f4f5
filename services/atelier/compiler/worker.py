"""A compile job: a model in, an engine or TorchScript out."""

from __future__ import annotations

from pathlib import Path

from atelier.artifacts import manifest
from atelier.artifacts.manifest import Kind
from atelier.compiler.profile import Target, resolve
from atelier.compiler.requests import to_spec
from atelier.compiler.spec import Output
from atelier.engines.detect import detect
from atelier.errors import AtelierError, invalid_field
from atelier.formats import single_file
from atelier.graphs.facts import read_facts
from atelier.graphs.graph import Graph, Role, read_graph
from atelier.jobs.context import JobContext, LocalArtifact
from atelier.v1 import compiler_pb2


def execute(request: compiler_pb2.CompileRequest, context: JobContext) -> None:
    """Runs the job. Raises INVALID_ARGUMENT for a model that cannot be read; see also `compilation` and `torchscript`."""
    spec = to_spec(request)
    model = _model(request.model, context)
    try:
        graph, facts = read_graph(model.folder, Role.UNET), read_facts(model.folder)
    except ValueError as error:
        raise invalid_field("model", str(error), reason="BAD_MODEL") from error
    target = resolve(spec, facts=facts, fingerprint=detect())
    if spec.output is Output.ENGINE and not spec.force and _published_before(graph, target, context):
        return
    # From here on it takes seconds to import what is needed.
    from atelier.compiler.compilation import Source, check_source, compile_engine
    from atelier.compiler.torchscript import write_torchscript

    source = Source(folder=model.folder, graph=graph, facts=facts)
    check_source(source)
    folder = context.workdir / "out"
    folder.mkdir()
    sources = [manifest.Source(role="model", digest=model.digest)]
    if spec.output is Output.TORCHSCRIPT:
        metadata = write_torchscript(source, target, folder, context)
        context.publish("torchscript", Kind.TORCHSCRIPT, folder, sources=sources, metadata=metadata)
    else:
        engine = compile_engine(source, target, folder, context)
        context.publish("engine", Kind.ENGINE, folder, sources=sources, metadata=engine.to_metadata())


def _model(name: str, context: JobContext) -> LocalArtifact:
    artifact = context.artifact(name)
    if artifact.manifest.kind is Kind.MODEL:
        return artifact
    folder: Path = context.workdir / "model"
    context.progress("converting the single file", 0)
    try:
        single_file.to_diffusers(next(artifact.folder.glob("*.safetensors")), folder)
    except ValueError as error:
        raise invalid_field("model", str(error), reason="BAD_MODEL") from error
    sources = [manifest.Source(role="single_file", digest=artifact.digest)]
    digest = context.publish("model", Kind.MODEL, folder, sources=sources)
    return LocalArtifact(digest=digest, manifest=artifact.manifest, folder=folder)


def _published_before(graph: Graph, target: Target, context: JobContext) -> bool:
    """Makes an engine that is there already the job's output."""
    for precision in target.candidates():
        try:
            found = context.find(Kind.ENGINE, target.manifest(graph.digest, precision).key)
        except AtelierError as error:
            if error.reason != "NOT_SIGNED_HERE":
                raise
            context.log(error.message, level="warning")
            continue
        if found:
            context.log(f"there is such an engine: artifacts/{found.digest}")
            context.publish("engine", Kind.ENGINE, found.folder, sources=found.manifest.sources, metadata=found.manifest.metadata)
            return True
    return False
