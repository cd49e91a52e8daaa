"""The inputs of a report: a bundle's own files, profiles, a ladder of precisions, and the gate's pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twins_trt.errors import ReportError
from twins_trt.profiling.results import PROFILE, Measurement, Profile, read_profile
from twins_trt.profiling.speed import SpeedVerdict, read_speed
from twins_trt.runtime.bundle import Bundle, open_bundle

MAX_PICTURES = 8


@dataclass(frozen=True)
class Inputs:
    """Everything that a report is made from.

    profiles: each with its file's name, the one saved in the bundle first. ladder: its rows, as plain objects.
    pictures: files of `twins-trt gate --pictures`. gate, audit, plan, calibration: JSON files of the bundle, None
    where it has none. speed: the bundle's speed verdict, None without one.
    """

    bundle: Bundle
    profiles: tuple[tuple[str, Profile], ...] = ()
    ladder: tuple[dict[str, Any], ...] = ()
    pictures: tuple[Path, ...] = ()
    gate: Any = None
    audit: Any = None
    plan: Any = None
    calibration: Any = None
    speed: SpeedVerdict | None = None

    @property
    def measurements(self) -> list[tuple[Profile, Measurement]]:
        """All measurements, in the order of the files."""
        return [(profile, each) for _, profile in self.profiles for each in profile.measurements]

    @property
    def own(self) -> tuple[Profile, Measurement] | None:
        """The first measurement of this bundle, found by the sha256 of its graph: names change."""
        graph = self.bundle.manifest.graph_sha256
        return next((pair for pair in self.measurements if pair[1].subject.graph_sha256 == graph), None)


def read_inputs(
    bundle: str | Path,
    *,
    profiles: Sequence[str | Path] = (),
    ladder: str | Path | None = None,
    pictures: str | Path | None = None,
) -> Inputs:
    """Opens the bundle, verifies it, and reads everything else.

    Raises BundleError for a bundle that is damaged, ProfileError for a file that is no profile or no speed verdict,
    ReportError for a ladder or a folder of pictures that cannot be read.
    """
    opened = open_bundle(bundle)
    saved = [opened.file(PROFILE)] if PROFILE in opened.files else []
    files = [*saved, *map(Path, profiles)]
    read = {name: opened.read_json(f"{name}.json") for name in ("gate", "audit", "plan", "calibration")}
    return Inputs(
        bundle=opened,
        profiles=tuple((path.name, read_profile(path)) for path in files),
        ladder=() if ladder is None else _read_ladder(Path(ladder)),
        pictures=() if pictures is None else _find_pictures(Path(pictures), read["gate"]),
        speed=read_speed(opened),
        **read,
    )


def pick(data: Any, *path: str | int) -> Any:
    """The value at `path` inside plain JSON, or None: files of older versions lack some values."""
    for key in path:
        inside = key in data if isinstance(data, dict) else isinstance(data, list) and key in range(len(data))
        if not inside:
            return None
        data = data[key]
    return data


def pick_number(data: Any, *path: str | int) -> float | None:
    """The finite number at `path`, or None."""
    value = pick(data, *path)
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def pick_text(data: Any, *path: str | int) -> str:
    """The text at `path`, or an empty one; a number becomes text."""
    value = pick(data, *path)
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


def pick_list(data: Any, *path: str | int) -> list[Any]:
    """The list at `path`, or an empty one."""
    value = pick(data, *path)
    return value if isinstance(value, list) else []


def _read_ladder(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{path} cannot be read: {error}", "give the results file of the ladder") from error
    rungs = pick_list(data, "rows") or pick_list(data, "results")
    if not rungs or not all(isinstance(rung, dict) for rung in rungs):
        raise ReportError(f"{path} holds no rungs of a ladder", "give the file that python -m benchmarks.ladder writes")
    return tuple(rungs)


def _find_pictures(folder: Path, gate: Any) -> tuple[Path, ...]:
    """The pictures to show: the worst images in the gate's own order, then others."""
    if not folder.is_dir():
        raise ReportError(
            f"there is no folder {folder}", "let the gate draw them: twins-trt gate BUNDLE --pictures DIR"
        )
    files = {path.stem: path for path in sorted(folder.glob("*.png"))}
    ranked = [files[name] for each in pick_list(gate, "worst") if (name := pick_text(each, "name")) in files]
    others = [path for path in files.values() if path not in ranked]
    return tuple([*ranked, *others][:MAX_PICTURES])
