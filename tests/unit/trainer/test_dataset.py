"""Phone photos and bad files: what a folder of pictures may hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from atelier.trainer import dataset


def picture(path: Path, size: tuple[int, int] = (96, 64), colour: str = "red", **save: object) -> Path:
    Image.new("RGB", size, colour).save(path, **save)  # type: ignore[arg-type]
    return path


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture(tmp_path / "phone.jpg", (96, 64), exif=exif)
    assert dataset.read(tmp_path, resolution=64).pictures[0].image.size == (64, 96)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert dataset.read(tmp_path, resolution=64).pictures[0].image.getpixel((5, 5)) == (255, 255, 255)


def test_unreadable_files_are_one_error_naming_all(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(picture(tmp_path / "x.png", (300, 300)).read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cut\.png.*text\.png \(not a picture\)"):
        dataset.read(tmp_path, resolution=64)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no picture"):
        dataset.read(tmp_path, resolution=64)


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png"):
        dataset.read(tmp_path, resolution=64)


def test_duplicates_are_left_out_and_tiny_ones_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    picture(tmp_path / "c.png", (20, 20), "blue")
    found = dataset.read(tmp_path, resolution=64)
    assert [p.name for p in found.pictures] == ["a.png", "c.png"]
    assert found.warnings == (
        "left out: b.png is the same picture as a.png",
        "tiny for 64 px, will look blurred: c.png (20x20)",
    )


def test_class_pictures_count_all_even_equal_ones(tmp_path: Path) -> None:
    for index in range(30):
        picture(tmp_path / f"{index:02d}.png", (20, 20))
    found = dataset.read(tmp_path, resolution=64, distinct=False)
    assert len(found.pictures) == 30
    assert len(found.warnings) == 1 and found.warnings[0].endswith("and 10 more")


def test_what_computers_leave_beside_pictures_is_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"no picture")
    assert [p.name for p in dataset.read(tmp_path, resolution=64).pictures] == ["a.png"]


def test_a_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"a\.png \(its caption a\.txt is not UTF-8 text\)"):
        dataset.read(tmp_path, resolution=64)


def test_a_text_beside_a_picture_is_its_caption(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a sks emoji on red\n")
    assert dataset.read(tmp_path, resolution=64).pictures[0].caption == "a sks emoji on red"


def test_a_wide_picture_is_cropped_where_asked(tmp_path: Path) -> None:
    wide = Image.new("RGB", (128, 64))
    wide.paste("red", (0, 0, 64, 64))
    left, right = dataset.crops(wide, resolution=64, center=False, positions=[0.0, 1.0], filter=dataset.Filter.BILINEAR)
    assert left.size == right.size == (64, 64)
    assert left.getpixel((10, 10)) == (255, 0, 0)
    assert right.getpixel((50, 10)) == (0, 0, 0)
    assert len(dataset.crops(wide, resolution=64, center=True, positions=[0.0, 1.0], filter=dataset.Filter.BILINEAR)) == 1
