"""The recorded resources of every kernel: the budget of later changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twins_trt.kernels.crosscompile.compiler import Resources, problems

RECORD = Path(__file__).parent / "resources.json"


@dataclass(frozen=True)
class Record:
    """Resources by kernel name and target. The compiler tells them; nothing was measured on a GPU.

    triton, date, machine: the version that compiled them, when and where.
    """

    triton: str
    date: str
    machine: str
    resources: Mapping[str, Mapping[str, Resources]] = field(default_factory=dict)

    def exceeded(self, name: str, target: str, resources: Resources, *, triton: str) -> list[str]:
        """What is wrong with a kernel compiled anew: its `problems`, and resources beyond this record.

        Another version of Triton allots registers and shared memory differently. Its kernels must only have no
        `problems`, and 16-byte loads where they are recorded.
        """
        faults = problems(resources, target)
        recorded = self.resources.get(name, {}).get(target)
        if recorded is None:
            return [*faults, "is not in the record"]
        if resources.wide_loads == 0 < recorded.wide_loads:
            faults.append(f"has no 16-byte loads, {recorded.wide_loads} are recorded")
        if triton != self.triton:
            return faults
        for key in ("registers", "shared", "tmem", "narrow_loads"):
            now, then = getattr(resources, key), getattr(recorded, key)
            if now > then:
                faults.append(f"takes {now} {key.replace('_', ' ')}, {then} are recorded")
        return faults

    def to_json(self) -> str:
        """One line a kernel, so that a change of one is a change of one line."""
        head = {key: value for key, value in asdict(self).items() if key != "resources"}
        lines = [
            f"  {json.dumps(name)}: {json.dumps({target: list(asdict(r).values()) for target, r in row.items()})}"
            for name, row in sorted(self.resources.items())
        ]
        columns = list(Resources.__dataclass_fields__)
        text = json.dumps({**head, "columns": columns}, indent=1).removesuffix("\n}")
        return f'{text},\n "resources": {{\n' + ",\n".join(lines) + "\n }\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        data: dict[str, Any] = json.loads(text)
        columns = data.pop("columns")
        rows = {
            name: {target: Resources(**dict(zip(columns, values, strict=True))) for target, values in row.items()}
            for name, row in data.pop("resources").items()
        }
        return cls(**data, resources=rows)


def read_record() -> Record:
    """The record that comes with this package."""
    return Record.from_json(RECORD.read_text(encoding="utf-8"))
