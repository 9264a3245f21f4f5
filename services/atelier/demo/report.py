"""What the demo leaves to look at: pictures side by side, the loss, the figures, and a page that shows them."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from atelier.demo.drawings import SUBJECT

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.2rem } img { max-width: 100% }
.figures b { font-size: 1.6rem; margin: 0 .3rem 0 1.2rem } .figures b:first-child { margin-left: 0 }
table { border-collapse: collapse; margin: 1rem 0 } th { font-weight: 600; color: #666 }
td, th { padding: .15rem 1.2rem .15rem .4rem; text-align: left; border-bottom: 1px solid #e6e6e6 }
td.n, th + th { text-align: right; font-variant-numeric: tabular-nums } tr.total { font-weight: 600 }
.facts td { overflow-wrap: anywhere } .facts td:first-child { white-space: nowrap }
pre { background: #f4f4f4; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere }
"""
GAP = 6
LABEL_PIXELS = 22


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of pictures with its title; `labels` stand above the pictures."""

    title: str
    pictures: Sequence[Image.Image]
    labels: Sequence[str] = ()


@dataclass(kw_only=True)
class Findings:
    """Everything that the page shows. `times` are in seconds, `likeness` is object -> (before, after)."""

    times: list[tuple[str, float]] = field(default_factory=list)
    likeness: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    kept: Sequence[tuple[str, float, float, float]] = ()
    """Prompt without the identifier; its picture's likeness to its own object before and after, and of the two pictures to each other."""
    facts: dict[str, str] = field(default_factory=dict)
    lineage: str = ""


def sheet(rows: Sequence[Row], *, side: int = 128) -> Image.Image:
    """Rows of pictures under their titles."""
    font = ImageFont.load_default(14)
    widest = max(len(row.pictures) for row in rows)
    heights = [LABEL_PIXELS * (1 + bool(row.labels)) + side + GAP for row in rows]
    made = Image.new("RGB", (widest * (side + GAP) + GAP, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(made)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        draw.text((GAP, top), row.title, fill="black", font=font)
        below = top + LABEL_PIXELS
        for index, label in enumerate(row.labels):
            draw.text((GAP + index * (side + GAP), below), label, fill="#666666", font=font)
        below += LABEL_PIXELS * bool(row.labels)
        for index, picture in enumerate(row.pictures):
            made.paste(picture.convert("RGB").resize((side, side)), (GAP + index * (side + GAP), below))
        top += height
    return made


def loss_curve(losses_csv: str, *, width: int = 720, height: int = 260, window: int = 20) -> str:
    """The loss over the steps as SVG: each step, and the mean of the last `window`."""
    losses = [float(row["loss"]) for row in csv.DictReader(io.StringIO(losses_csv))]
    means = [sum(losses[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(losses))]
    top = sorted(losses)[int(0.98 * (len(losses) - 1))] * 1.1

    def path(values: Sequence[float]) -> str:
        points = [
            (50 + i * (width - 70) / max(1, len(values) - 1), height - 30 - min(v, top) / top * (height - 50)) for i, v in enumerate(values)
        ]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)

    grid = "".join(
        f'<line x1="50" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        f'<text x="44" y="{y + 4:.1f}" text-anchor="end">{v:.2f}</text>'
        for v in (0, top / 2, top)
        for y in [height - 30 - v / top * (height - 50)]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" font-family="sans-serif" font-size="11">'
        f'{grid}<polyline points="{path(losses)}" fill="none" stroke="#c9d7ee"/>'
        f'<polyline points="{path(means)}" fill="none" stroke="#2458a8" stroke-width="2"/>'
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">'
        f"step (1 to {len(losses)}); min-SNR loss, and its mean over {window}</text></svg>\n"
    )


def times_table(times: Sequence[tuple[str, float]]) -> str:
    """The times as Markdown; installation is not in them."""
    total = sum(seconds for _, seconds in times)
    lines = [
        "| step | seconds |",
        "|---|---:|",
        *(f"| {name} | {seconds:.1f} |" for name, seconds in times),
        f"| **in all** | **{total:.1f}** |",
    ]
    return "\n".join(lines) + "\n"


def likeness_table(findings: Findings) -> str:
    """How alike the subject's pictures are to it and to other objects, and what became of other prompts, as Markdown."""
    lines = ["| drawing of | before | after | change |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {before:.2f} | {after:.2f} | {after - before:+.2f} |" for name, (before, after) in findings.likeness.items()]
    lines += ["", "| prompt without the identifier | own object, before | after | before to after |", "|---|---:|---:|---:|"]
    lines += [f"| {prompt} | {before:.2f} | {after:.2f} | {each:.2f} |" for prompt, before, after, each in findings.kept]
    return "\n".join(lines) + "\n"


def page(findings: Findings) -> str:
    """The page."""
    facts = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in findings.facts.items())
    data = html.escape(findings.facts["data"])
    before, after = findings.likeness[SUBJECT]
    seconds = sum(each for _, each in findings.times)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Atelier: the demo</title>
<style>{STYLE}</style>
<h1>Six pictures, a few minutes, an endpoint</h1>
<p>The model had never seen an {SUBJECT}. It was fine-tuned on six pictures, converted, merged, compiled and put into service on this
machine; the pictures below came over gRPC from that service.</p>
<p class="figures"><b>{before:.2f} &rarr; {after:.2f}</b> likeness to the {SUBJECT} <b>{seconds:.0f} s</b> in all</p>
<img src="before-after.png" alt="before and after">
<h2>How alike</h2>
<p>Likeness (0 to 1) of the pictures of "a sks emoji on a ... background", on backgrounds that were not trained on, to drawings of
the subject and of other objects: the mean cosine of silhouette, edge directions and colours, background left out.
Then prompts without the identifier.</p>
{_table(likeness_table(findings))}
<h2>Loss</h2>
<img src="loss.svg" alt="loss">
<h2>Times</h2>
{_table(times_table(findings.times))}
<h2>Where it came from</h2>
<pre>{html.escape(findings.lineage)}</pre>
<table class="facts">{facts}</table>
<h2>Go on</h2>
<pre>atelier up --data {data}
atelier generate "a sks emoji on a green background" --deployment az-octopus -o octopus.png --data {data}</pre>
"""


def _table(markdown: str) -> str:
    rows = []
    for block in markdown.strip().split("\n\n"):
        head, _, *body = [line.strip("| ").split(" | ") for line in block.splitlines()]
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        rows.append(f"<table><tr>{cells}</tr>" + "".join(_row(line) for line in body) + "</table>")
    return "\n".join(rows)


def _row(cells: Sequence[str]) -> str:
    total = ' class="total"' if cells[0].startswith("**") else ""
    first, *others = [html.escape(cell.strip("*")) for cell in cells]
    return f"<tr{total}><td>{first}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in others) + "</tr>"


def write(findings: Findings, folder: Path, *, losses_csv: str) -> None:
    """Writes everything but the pictures."""
    (folder / "loss.svg").write_text(loss_curve(losses_csv))
    (folder / "times.md").write_text(times_table(findings.times))
    (folder / "likeness.md").write_text(likeness_table(findings))
    (folder / "index.html").write_text(page(findings), encoding="utf-8")
