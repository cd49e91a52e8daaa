"""The file with the results of a search so far, from which a run that was killed resumes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twins_trt.builders.fallback.search import Parts, PlanScore
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.codec import encode
from twins_trt.files import whole_file

_FORMAT = 2

log = logging.getLogger("twins_trt")


@dataclass
class SearchState:
    """The results of a search so far.

    key: of everything that scores and harm depend on (`search_key`). scores: by the parts reverted. harm: by part.
    """

    path: Path
    key: str
    scores: dict[Parts, PlanScore] = field(default_factory=dict)
    harm: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, key: str) -> SearchState:
        """The state in a file of the same key; else an empty state, which `save` writes in the file's place.

        A damaged file is removed and named in the log.
        """
        if not path.is_file():
            return cls(path, key)
        try:
            return cls._read(path, key)
        except Exception as error:  # JSON's, and whatever a value of another type raises
            log.warning("%s is damaged (%r): the search starts over", path, error)
            path.unlink(missing_ok=True)
            return cls(path, key)

    @classmethod
    def _read(cls, path: Path, key: str) -> SearchState:
        state = cls(path, key)
        stored = json.loads(path.read_text(encoding="utf-8"))
        if (stored["format"], stored["key"]) == (_FORMAT, key):
            for each in stored["verdicts"]:
                numbers = (float(each[name]) for name in ("drop", "agreement", "missing"))
                state.scores[frozenset(each["reverted"])] = PlanScore(bool(each["passed"]), *numbers)
            state.harm = {str(name): float(value) for name, value in stored["harm"].items()}
        return state

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        scores = [{"reverted": sorted(parts), **encode(score)} for parts, score in self.scores.items()]
        content = {"format": _FORMAT, "key": self.key, "verdicts": scores, "harm": self.harm}
        with whole_file(self.path, durable=False) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


def search_key(*, ranges: str, plan: PrecisionPlan, images: str, options: Mapping[str, Any]) -> str:
    """sha256 of everything that a score depends on.

    ranges: the key of the calibration, which holds the graph's. images: the key of the gate's images and labels.
    options: thresholds, engine, device and versions.
    """
    parts = {"ranges": ranges, "plan": encode(plan), "images": images, "settings": encode(options)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
