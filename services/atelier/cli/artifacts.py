"""`atelier artifacts`: pictures, models, LoRAs, engines, and what they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from atelier.artifacts.importing import cached_repository, hub_facts
from atelier.artifacts.manifest import Kind
from atelier.cli.export import export_to_webui
from atelier.cli.lineage import draw, lineage_of
from atelier.cli.session import Session, session_of
from atelier.client.artifact_service import kind_of
from atelier.v1 import artifact_pb2

app = typer.Typer(help="Pictures, models, LoRAs, engines, and what they were made from.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="artifacts/DIGEST, 8 or more of its digits, or a tag.")]
AsKind = Annotated[Kind | None, typer.Option("--kind", case_sensitive=False, help="Left out: told by the content.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Tag to put on it.")]


@app.command("import")
def import_(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, file or Hugging Face repository, here or on the server.")],
    kind: AsKind = None,
    tag: Tags = None,
    allow_download: Annotated[bool, typer.Option("--allow-download", help="Lets the server download the repository.")] = False,
    revision: Annotated[str, typer.Option("--revision", help="Branch, tag or commit of the repository.")] = "",
) -> None:
    """Brings something in: from this machine where it is found here, else from the server's disk."""
    session = session_of(context)
    here = Path(source).expanduser()
    if here.exists():
        _upload(session, here, kind, tag)
        return
    found = cached_repository(session.hub, source, revision)
    if found is not None:
        _upload(session, found, kind, tag, metadata=hub_facts(source, found))
        return
    with session.client() as client:
        artifact = client.artifacts.import_(source, kind=kind, tags=tag or [], allow_download=allow_download, revision=revision)
    session.show(artifact, line_of(artifact))


@app.command("upload")
def upload(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder or file of this machine.")],
    kind: AsKind = None,
    tag: Tags = None,
) -> None:
    """Brings in a folder or file of this machine; what is there already is not sent again."""
    _upload(session_of(context), path, kind, tag)


@app.command("download")
def download(
    context: typer.Context,
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of this machine.")],
) -> None:
    """Writes an artifact's files below a folder, each checked against its SHA-256."""
    session = session_of(context)
    with session.client() as client, session.transfers(f"downloading {name}") as told:
        artifact = client.artifacts.download(name, folder, progress=told)
    session.show(artifact, f"{folder}  {len(artifact.files)} files, {size_of(artifact.size_bytes)}")


@app.command("export")
def export(
    context: typer.Context,
    name: Name,
    webui: Annotated[Path, typer.Option("--webui", metavar="DIR", help="WebUI's folder: gets models/Stable-diffusion or models/Lora.")],
) -> None:
    """Puts a model or LoRA where WebUI finds it, converted where that is needed, with its preview picture."""
    session = session_of(context)
    with session.client() as client:
        written = [str(path) for path in export_to_webui(session, client, name, webui)]
    session.show({"written": written}, "\n".join(written))


@app.command("list")
def list_artifacts(
    context: typer.Context,
    kind: AsKind = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 50,
) -> None:
    """Artifacts, newest first."""
    session = session_of(context)
    with session.client() as client:
        found = list(islice(client.artifacts.list(kind), limit))
    if session.json:
        session.show({"artifacts": found})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("DIGEST", "KIND", "SIZE", "MADE", "TAGS"):
        table.add_column(column, overflow="fold")
    for artifact in found:
        made = artifact.create_time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        digest = artifact.name.removeprefix("artifacts/")[:12]
        table.add_row(digest, kind_of(artifact), size_of(artifact.size_bytes), made, " ".join(artifact.tags))
    session.show_table(table)


@app.command("get")
def get(context: typer.Context, name: Name) -> None:
    """One artifact with its files."""
    session = session_of(context)
    with session.client() as client:
        artifact = client.artifacts.get(name)
    lines = [line_of(artifact), *(f"  {file.path}  {size_of(file.size)}" for file in artifact.files)]
    lines += [f"  made from {source.role} {source.artifact}" for source in artifact.sources]
    lines += [f"  made by {artifact.job}"] if artifact.job else []
    session.show(artifact, "\n".join(lines))


@app.command("tag")
def tag_artifact(
    context: typer.Context,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="name, or name:version.")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="What it shall point at.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Takes the tag away.")] = False,
) -> None:
    """Moves a tag to an artifact."""
    session = session_of(context)
    if remove == bool(name):
        raise typer.BadParameter("name the artifact that the tag shall point at, or give --remove", param_hint="NAME")
    with session.client() as client:
        artifact = client.artifacts.tag(tag, name) if name else client.artifacts.untag(tag)
    session.show(artifact, line_of(artifact))


@app.command("delete")
def delete(
    context: typer.Context,
    name: Name,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Says whether it could be deleted.")] = False,
) -> None:
    """Deletes an artifact that nothing uses."""
    session = session_of(context)
    with session.client() as client:
        full = client.artifacts.get(name).name
        client.artifacts.delete(full, validate_only=validate_only)
    session.show({"name": full}, f"{full} {'can be deleted' if validate_only else 'is deleted'}")


@app.command("lineage")
def lineage(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A deployment, an artifact or a tag.")],
) -> None:
    """Draws what something was made from, back to the pictures."""
    session = session_of(context)
    with session.client() as client:
        tree = lineage_of(client, name)
    if session.json:
        session.show(tree.as_json())
    else:
        session.out.print(draw(tree))


def _upload(session: Session, path: Path, kind: Kind | None, tags: list[str] | None, metadata: Mapping[str, str] | None = None) -> None:
    with session.client() as client, session.transfers(f"uploading {path.name}") as told:
        artifact = client.artifacts.upload(path, kind=kind, tags=tags or [], metadata=metadata, progress=told)
    session.show(artifact, line_of(artifact))


def line_of(artifact: artifact_pb2.Artifact) -> str:
    """An artifact in a line."""
    return "  ".join([artifact.name, kind_of(artifact), size_of(artifact.size_bytes), *artifact.tags])


def size_of(size_bytes: int) -> str:
    """Bytes for people."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
