"""The parts of a plan that can be reverted, and the harm that each does if it alone runs in INT8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.builders.plan.sites import Site, block_of
from twins_trt.builders.quantize.graphs import QuantizedGraphs, relative_error
from twins_trt.progress import Progress, silent

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """The unit that is reverted: a block of the backbone without its attention, an attention, or one product of the
    neck or head, where single products are large. level: the part's level in the plan."""

    name: str
    level: str


def find_parts(plan: PrecisionPlan, sites: Sequence[Site]) -> tuple[Part, ...]:
    """The parts of a plan that run in INT8, in the graph's order."""
    parts: dict[str, Part] = {}
    for site in plan.int8_sites(sites):
        block = block_of(site.node)
        whole = site.kind != "attention" and block.endswith((".attn", ".ffn"))
        name = block if whole else site.node
        parts.setdefault(name, Part(name, plan.level_of(name)))
    return tuple(parts.values())


def alone(plan: PrecisionPlan, part: Part, parts: Sequence[Part]) -> PrecisionPlan:
    """The plan with one part in INT8 and the other parts at FP16."""
    return plan.reverted(other.name for other in parts if other != part).with_level(part.name, part.level)


def rank_parts(
    plan: PrecisionPlan,
    parts: Sequence[Part],
    graphs: QuantizedGraphs,
    images: Sequence[Image],
    *,
    harm: dict[str, float],
    threads: int | None = None,
    progress: Progress = silent,
    keep: Callable[[], None] | None = None,
) -> list[str]:
    """The names of the parts, the most harmful first.

    The harm of a part is the squared error of the logits, relative to their variance, if the part alone runs in INT8.
    The graphs run on ONNX Runtime in float32, so that only the rounding of INT8 counts. images: uint8 [H, W, 3], of any
    size. harm: by name, as far as an earlier run knows it; filled in here. keep: called after every part.
    """
    unknown = [part for part in parts if part.name not in harm]
    wanted = graphs.logits(None, images, threads=threads) if unknown else []
    for index, part in enumerate(unknown):
        progress("fallback", f"sensitivity: {part.name}", index / len(unknown))
        harm[part.name] = relative_error(graphs.logits(alone(plan, part, parts), images, threads=threads), wanted)
        if keep is not None:
            keep()
    return sorted((part.name for part in parts), key=lambda name: -harm[name])
