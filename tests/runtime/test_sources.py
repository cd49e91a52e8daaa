"""Files, folders and patterns to paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from twins_trt.errors import ImageError
from twins_trt.runtime import expand_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("10.png", "2.png", "1.JPG", "b/3.png", "b/20.jpeg", "B.bmp", ".hidden.png", "notes.txt", "[x].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def named(folder: Path, *sources: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in expand_sources([folder / source for source in sources])]


def test_a_folder_gives_its_own_images_as_people_count(folder: Path) -> None:
    assert named(folder, ".") == ["1.JPG", "2.png", "10.png", "[x].png", "B.bmp"]


def test_patterns_and_all_levels(folder: Path) -> None:
    assert named(folder, "*.png") == ["2.png", "10.png", "[x].png"]
    assert named(folder, "**/*") == ["1.JPG", "2.png", "10.png", "[x].png", "B.bmp", "b/3.png", "b/20.jpeg"]


def test_a_file_is_taken_as_it_is_even_if_it_looks_like_a_pattern(folder: Path) -> None:
    assert named(folder, "notes.txt", "[x].png") == ["notes.txt", "[x].png"]
    assert expand_sources(str(folder / "2.png")) == [folder / "2.png"]


def test_each_image_comes_once_in_the_order_named(folder: Path) -> None:
    assert named(folder, "b", "10.png", "*.png") == ["b/3.png", "b/20.jpeg", "10.png", "2.png", "[x].png"]


@pytest.mark.parametrize(
    ("source", "said"),
    [("absent.png", r"absent\.png does not exist"), ("*.webp", r"no image matches"), ("empty", r"holds no images")],
)
def test_a_source_that_gives_nothing_is_named(folder: Path, source: str, said: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ImageError, match=said):
        expand_sources([folder / "2.png", folder / source])
