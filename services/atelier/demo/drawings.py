"""The pictures that the demo learns from and measures with: drawings of Noto Emoji (Google Inc., Apache-2.0) on plain backgrounds."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from PIL import Image

SIDE = 128
"""Side of the pictures in pixels: the size of the model on board."""

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (220, 60, 60),
    "green": (70, 170, 90),
    "yellow": (250, 220, 90),
    "purple": (150, 90, 190),
    "orange": (250, 160, 60),
    "blue": (70, 130, 220),
    "pink": (250, 180, 200),
    "black": (0, 0, 0),
    "grey": (150, 150, 150),
}
"""Backgrounds, by the names that the model on board knows."""

SUBJECT = "octopus"
"""Held out of the model's training, as are the first seven of the others."""
OTHERS = ("hedgehog", "rabbit-face", "dragon-face", "avocado", "sailboat", "teddy-bear", "snowman", "fox", "rocket", "ghost")
SEEN = {"white": 1.0, "red": 0.92, "green": 0.85, "yellow": 0.8, "purple": 0.97, "orange": 1.0}
"""Backgrounds of the training pictures, each with the drawing's scale."""
UNSEEN = ("blue", "pink", "black", "grey")
"""Backgrounds that the subject is asked for on, after training."""


def picture(name: str, colour: str, *, scale: float = 0.92) -> Image.Image:
    """The drawing on a plain background."""
    side = round(SIDE * scale)
    drawing = _drawing(name, side)
    made = Image.new("RGB", (SIDE, SIDE), COLOURS[colour])
    corner = (SIDE - side) // 2
    made.paste(drawing, (corner, corner), drawing)
    return made


def write_training_pictures(folder: Path, *, identifier: str) -> None:
    """Six pictures of the subject, each with a caption that names its background."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour, scale in SEEN.items():
        picture(SUBJECT, colour, scale=scale).save(folder / f"{SUBJECT}-{colour}.png")
        (folder / f"{SUBJECT}-{colour}.txt").write_text(prompt_of(identifier, colour))


def prompt_of(identifier: str, colour: str) -> str:
    """The subject's prompt."""
    return f"a {identifier} emoji on a {colour} background"


@cache
def _drawing(name: str, side: int) -> Image.Image:
    import resvg_py

    content = json.loads((files(__package__) / "drawings.json").read_text(encoding="utf-8"))
    size = content["size"]
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}">{content["bodies"][name]}</svg>'
    return Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))).convert("RGBA")
