"""What the demo measures, and what it leaves to look at."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from atelier.demo import likeness, report
from atelier.demo.drawings import OTHERS, SUBJECT, UNSEEN, picture, write_training_pictures
from atelier.demo.walk import summary


def test_a_drawing_is_most_like_itself_whatever_its_background() -> None:
    references = {name: [picture(name, colour) for colour in UNSEEN] for name in (SUBJECT, *OTHERS)}
    for name in references:
        ranked = likeness.ranking([picture(name, "yellow", scale=0.8)], references)
        assert next(iter(ranked)) == name and ranked[name] > 0.9
        assert max(value for other, value in ranked.items() if other != name) < 0.7


def test_an_empty_picture_is_like_nothing() -> None:
    assert likeness.likeness(Image.new("RGB", (128, 128), "white"), picture(SUBJECT, "blue")) < 0.3


def test_the_training_pictures_are_six_and_say_what_they_show(tmp_path: Path) -> None:
    write_training_pictures(tmp_path, identifier="sks")
    assert len(list(tmp_path.glob("*.png"))) == 6
    assert (tmp_path / "octopus-red.txt").read_text() == "a sks emoji on a red background"


@pytest.fixture
def findings() -> report.Findings:
    return report.Findings(
        times=[("train", 100.0), ("merge <it>", 2.5)],
        likeness={"fox": (0.5, 0.9), SUBJECT: (0.3, 0.8)},
        kept=[("a fox", 0.7, 0.6, 0.9)],
        facts={"data": "/a & b"},
        lineage="DEPLOYMENT <x>",
    )


def test_the_page_shows_figures_and_escapes_what_it_shows(findings: report.Findings, tmp_path: Path) -> None:
    report.write(findings, tmp_path, losses_csv="step,loss\n1,0.5\n2,0.25\n")
    page = (tmp_path / "index.html").read_text()
    assert "<b>0.30 &rarr; 0.80</b> likeness to the octopus" in page and "<b>102 s</b> in all" in page
    assert "merge &lt;it&gt;" in page and "DEPLOYMENT &lt;x&gt;" in page and "/a &amp; b" in page
    for name in re.findall(r'src="([^"]+)"', page):
        assert name == "before-after.png" or (tmp_path / name).exists()
    assert "| **in all** | **102.5** |" in (tmp_path / "times.md").read_text()


def test_the_summary_names_the_subject_and_the_object_that_gained_most(findings: report.Findings) -> None:
    lines = summary(findings)
    assert "octopus: 0.30 before, 0.80 after (+0.50; the most to another object: fox +0.40)" in lines[0]
    assert '"a fox": likeness to its own object 0.70 before, 0.60 after' in lines[1]


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    ended = subprocess.run([sys.executable, "-m", "atelier.demo", str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and (tmp_path / "mine").exists()
    assert ended.stderr.startswith(f"error: {tmp_path} is not empty") and ended.stderr.count("\n") == 1
