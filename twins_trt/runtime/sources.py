"""From names of files, folders and patterns to image paths."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from twins_trt.data.images import IMAGE_SUFFIXES
from twins_trt.errors import ImageError


def expand_sources(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """The image files of `sources`, each once.

    A file is taken as it is. A folder gives the images directly in it, and a pattern (`frames/*.png`, `**` for all
    levels) the images that it matches, both sorted by number (`2.png` before `10.png`) and without hidden files. The
    order of `sources` is kept. Raises ImageError for a source that does not exist or gives no image.
    """
    named = [sources] if isinstance(sources, (str, Path)) else list(sources)
    paths: dict[Path, None] = {}
    for source in named:
        paths.update(dict.fromkeys(_expand(source)))
    return list(paths)


def natural_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """The key that sorts names by number: digits by value, other text without case, ties by the exact name."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if i % 2 else (1, 0, part.casefold()) for i, part in enumerate(parts)], str(path)


def _expand(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        images = [child for child in path.iterdir() if _is_image(child)]
        if not images:
            raise ImageError(f"{path} holds no images", f"images end in {', '.join(IMAGE_SUFFIXES)}")
    elif path.exists():
        images = [path]
    elif glob.has_magic(str(source)):
        images = [match for match in map(Path, glob.iglob(str(source), recursive=True)) if _is_image(match)]
        if not images:
            raise ImageError(f"no image matches {source}", f"images end in {', '.join(IMAGE_SUFFIXES)}")
    else:
        raise ImageError(f"{path} does not exist")
    return sorted(images, key=natural_key)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
