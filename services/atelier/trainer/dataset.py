"""Pictures from a folder, looked at before training starts: what is bad is named at once. Imports no torch."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

Filter = Image.Resampling
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 80_000_000
"""Larger ones are refused before they are decoded."""
NOT_PICTURES = (".txt", ".json", ".md", ".ini", ".db")
"""Endings of what lies beside pictures: captions, notes, what Windows leaves. Hidden files (macOS's) are passed over too."""


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


def read(folder: Path, *, resolution: int, distinct: bool = True) -> Dataset:
    """Reads the pictures of a folder; with `distinct` each one once. Raises ValueError that names every unreadable one, or says that
    there is none."""
    pictures, problems, repeated, tiny = [], [], [], []
    seen: dict[str, str] = {}
    for path in _paths(folder):
        name = path.relative_to(folder).as_posix()
        try:
            picture = Picture(name=name, image=open_picture(path), caption=_caption(path))
        except ValueError as error:
            problems.append(f"{name} ({error})")
            continue
        image = picture.image
        first = seen.setdefault(hashlib.sha256(image.tobytes() + str(image.size).encode()).hexdigest(), name)
        if distinct and first != name:
            repeated.append(f"{name} is the same picture as {first}")
            continue
        if min(image.size) < resolution // 2:
            tiny.append(f"{name} ({image.width}x{image.height})")
        pictures.append(picture)
    if problems:
        raise ValueError(f"these pictures cannot be read: {'; '.join(problems)}")
    if not pictures:
        raise ValueError("there is no picture")
    odd = [f"left out: {_listed(repeated)}"] if repeated else []
    odd += [f"tiny for {resolution} px, will look blurred: {_listed(tiny)}"] if tiny else []
    return Dataset(pictures=tuple(pictures), warnings=tuple(odd))


def _paths(folder: Path) -> list[Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix.lower() not in NOT_PICTURES)
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _listed(words: list[str]) -> str:
    return "; ".join(words[:20]) + (f"; and {len(words) - 20} more" if len(words) > 20 else "")


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


def crops(image: Image.Image, *, resolution: int, center: bool, positions: list[float], filter: Filter) -> list[Image.Image]:
    """Squares of `resolution` pixels from a picture whose shorter side is brought to it, as the scripts do.

    `filter` resizes; `positions` (0..1) say where along the longer side; a square picture, or `center`, gives one.
    """
    scale = resolution / min(image.size)
    size = (max(resolution, round(image.width * scale)), max(resolution, round(image.height * scale)))
    resized = image.resize(size, filter)
    room = (size[0] - resolution, size[1] - resolution)
    wanted = [0.5] if center or room == (0, 0) else positions
    boxes = [(round(room[0] * p), round(room[1] * p)) for p in wanted]
    return [resized.crop((x, y, x + resolution, y + resolution)) for x, y in boxes]


def _caption(path: Path) -> str:
    text = path.with_suffix(".txt")
    try:
        return text.read_text(encoding="utf-8").strip() if text.exists() else ""
    except UnicodeDecodeError:
        raise ValueError(f"its caption {text.name} is not UTF-8 text") from None
