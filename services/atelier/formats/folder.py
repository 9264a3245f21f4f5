"""A model's folder written anew, so that transformers 4.57 with diffusers 0.35 read it, whoever wrote the source.

They look for `text_model.` in a text encoder's names, and take no variant of a file unless they are told to.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from atelier.formats import texts
from atelier.formats.keys import text_name
from atelier.formats.tensorfile import Output, Report, TensorFile, copied, write
from atelier.graphs.files import STEMS, weight_files

Rewrite = Callable[[str, TensorFile], Iterable[Output]]
"""Given a part and one of its files, the tensors that are written in their place."""


def rewrite(
    source: Path, target: Path, *, tensors: Rewrite | None = None, without: Collection[str] = (), report: Report | None = None
) -> None:
    """Writes the model in `source` to `target`, each part's weights as one file; parts in `without` get their config alone.

    Raises ValueError where the source is no whole model.
    """
    found = texts.of_folder(source)
    rewritten = tensors or _unchanged
    for part in STEMS:
        if part not in without:
            outputs = [output for path in weight_files(source, part) for output in rewritten(part, TensorFile(path))]
            write(target / part / f"{STEMS[part]}.safetensors", [_named(part, output) for output in outputs], {}, report=report)
    texts.write(found, target)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and name.parts[0] not in STEMS and not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def _unchanged(part: str, file: TensorFile) -> list[Output]:
    return [copied(file, name, name) for name in file.entries]


def _named(part: str, output: Output) -> Output:
    return replace(output, name=text_name(output.name) or output.name) if part == "text_encoder" else output
