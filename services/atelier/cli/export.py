"""Into the folders of another program: a checkpoint or LoRA where WebUI looks for it, with a picture of what it draws."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from atelier.artifacts.manifest import Kind
from atelier.cli.following import watch
from atelier.cli.session import Session
from atelier.client.artifact_service import kind_of
from atelier.client.client import Client
from atelier.client.job_service import check
from atelier.errors import invalid_field
from atelier.v1 import artifact_pb2, converter_pb2

FOLDERS: Mapping[Kind, str] = {
    Kind.MODEL: "models/Stable-diffusion",
    Kind.SINGLE_FILE: "models/Stable-diffusion",
    Kind.LORA: "models/Lora",
}
"""Where WebUI looks for what."""
CONVERSIONS: Mapping[Kind, converter_pb2.Format.ValueType] = {
    Kind.MODEL: converter_pb2.FORMAT_SINGLE_FILE,
    Kind.LORA: converter_pb2.FORMAT_LORA_WEBUI,
}
"""What has to be converted first; a LoRA that is in WebUI's names already comes out as it is."""


def export_to_webui(session: Session, client: Client, name: str, webui: Path) -> list[Path]:
    """Writes `STEM.safetensors`, and `STEM.png` where there is a preview, below WebUI's folder; gives what was written.

    STEM is the artifact's first tag, else the beginning of its digest. Raises INVALID_ARGUMENT for what WebUI has no folder for.
    """
    artifact = client.artifacts.get(name)
    kind = kind_of(artifact)
    if kind not in FOLDERS:
        raise invalid_field("NAME", f"{name} is of kind {kind}; WebUI takes {', '.join(FOLDERS)}")
    source = artifact.name
    if kind in CONVERSIONS:
        source = _converted(session, client, artifact, CONVERSIONS[kind])
    folder = webui / FOLDERS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    stem = artifact.tags[0].removesuffix(":latest").replace(":", "-") if artifact.tags else artifact.name.removeprefix("artifacts/")[:12]
    # Downloaded beside its place, so that WebUI never sees half a file.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as part, session.transfers(f"writing {folder}") as told:
        client.artifacts.download(source, Path(part), progress=told)
        weights = next(Path(part).glob("*.safetensors"))
        written = [_moved(weights, folder / f"{stem}.safetensors")]
        preview = Path(part) / "preview.png"
        written += [_moved(preview, folder / f"{stem}.png")] if preview.exists() else []
    return written


def _converted(session: Session, client: Client, artifact: artifact_pb2.Artifact, to: converter_pb2.Format.ValueType) -> str:
    request = converter_pb2.ConvertRequest(source=artifact.name, to=to)
    job = watch(session, client, client.convert(request).name, samples=None)
    check(job)
    return job.outputs[0].artifact


def _moved(source: Path, target: Path) -> Path:
    shutil.move(source, target)
    return target
