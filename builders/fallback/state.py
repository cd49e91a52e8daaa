"""What a search has found out so far, in a file: a run that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twins_trt.builders.fallback.search import Parts, Verdict
from twins_trt.builders.plan import Plan
from twins_trt.errors import DataError
from twins_trt.files import whole_file
from twins_trt.runtime.codec import encode

_FORMAT = 1


@dataclass
class SearchState:
    """key: of all that verdicts and harm depend on (`search_key`). verdicts: by the parts reverted. harm: by part."""

    path: Path
    key: str
    verdicts: dict[Parts, Verdict] = field(default_factory=dict)
    harm: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, key: str) -> SearchState:
        """The state in a file if it has the same key; else a new one, which will take its place.

        Raises `DataError` for a file that is damaged.
        """
        state = cls(path, key)
        if not path.is_file():
            return state
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if (stored["format"], stored["key"]) != (_FORMAT, key):
                return state
            for each in stored["verdicts"]:
                state.verdicts[frozenset(each["reverted"])] = Verdict(bool(each["passed"]), float(each["drop"]))
            state.harm = {str(name): float(value) for name, value in stored["harm"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read: {error!r}", "remove it, and the search begins anew") from error
        return state

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        verdicts = [
            {"reverted": sorted(parts), "passed": verdict.passed, "drop": verdict.drop}
            for parts, verdict in self.verdicts.items()
        ]
        content = {"format": _FORMAT, "key": self.key, "verdicts": verdicts, "harm": self.harm}
        with whole_file(self.path, durable=False) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


def search_key(*, ranges: str, plan: Plan, images: str, settings: Mapping[str, Any]) -> str:
    """sha256 of all that a verdict depends on. ranges: the key of the calibration, which holds the graph's. images: of
    the gate's images and labels. settings: thresholds, engine and versions."""
    parts = {"ranges": ranges, "plan": encode(plan), "images": images, "settings": encode(settings)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
