"""Pictures from a folder, looked at before training starts: what is bad is named at once. Imports no torch."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 80_000_000
"""Larger ones are refused before they are decoded."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture, upright and without transparency, and its caption (empty: the prompt of the run)."""

    name: str
    image: Image.Image
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The pictures that can be used, sorted by name, and what is odd about others."""

    pictures: tuple[Picture, ...]
    warnings: tuple[str, ...] = field(default_factory=tuple)


def read(folder: Path, *, resolution: int) -> Dataset:
    """Reads the pictures of a folder. Raises ValueError that names every unreadable one, or says that there is none."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix.lower() not in (".txt", ".json", ".md")]
    pictures, problems, odd = [], [], []
    seen: dict[str, str] = {}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            image = open_picture(path)
        except ValueError as error:
            problems.append(f"{name} ({error})")
            continue
        digest = hashlib.sha256(image.tobytes() + str(image.size).encode()).hexdigest()
        if digest in seen:
            odd.append(f"{name} is the same picture as {seen[digest]}: left out")
            continue
        seen[digest] = name
        if min(image.size) < resolution // 2:
            odd.append(f"{name} is tiny ({image.width}x{image.height} for {resolution}): it will look blurred")
        pictures.append(Picture(name=name, image=image, caption=_caption(path)))
    if problems:
        raise ValueError(f"these pictures cannot be read: {'; '.join(problems)}")
    if not pictures:
        raise ValueError("there is no picture")
    return Dataset(pictures=tuple(pictures), warnings=tuple(odd))


def open_picture(path: Path) -> Image.Image:
    """One picture as RGB: EXIF rotation applied, transparency on white. Raises ValueError that says why it cannot be read."""
    Image.init()  # else Pillow knows its commonest formats only
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return _flatten(image)
    except UnidentifiedImageError:
        raise ValueError("not a picture") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"damaged: {type(error).__name__}") from None


def _flatten(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} is too large")
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert("RGB")


def crops(image: Image.Image, *, resolution: int, center: bool, positions: list[float]) -> list[Image.Image]:
    """Squares of `resolution` pixels from a picture whose shorter side is brought to it, as the scripts do.

    `positions` (0..1) say where along the longer side; a square picture, or `center`, gives one.
    """
    scale = resolution / min(image.size)
    size = (max(resolution, round(image.width * scale)), max(resolution, round(image.height * scale)))
    resized = image.resize(size, Image.Resampling.BILINEAR)
    room = (size[0] - resolution, size[1] - resolution)
    wanted = [0.5] if center or room == (0, 0) else positions
    boxes = [(round(room[0] * p), round(room[1] * p)) for p in wanted]
    return [resized.crop((x, y, x + resolution, y + resolution)) for x, y in boxes]


def _caption(path: Path) -> str:
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.exists() else ""
