"""The parts of a plan that can be reverted, and how much harm each does when it alone runs in INT8."""

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
    """What is reverted as one: a block of the backbone without its attention, an attention, or one product of neck and
    head, whose products are large. level: what it runs at in the plan."""

    name: str
    level: str


def find_parts(plan: PrecisionPlan, sites: Sequence[Site]) -> tuple[Part, ...]:
    """The parts of a plan that run in INT8, in the graph's order."""
    found: dict[str, Part] = {}
    for site in plan.quantized(sites):
        block = block_of(site.node)
        whole = site.kind != "attention" and block.endswith((".attn", ".ffn"))
        name = block if whole else site.node
        found.setdefault(name, Part(name, plan.level_of(name)))
    return tuple(found.values())


def alone(plan: PrecisionPlan, part: Part, parts: Sequence[Part]) -> PrecisionPlan:
    """The plan with nothing but one part in INT8."""
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
    """Names of the parts, the most harmful first.

    Harm is the squared error of the logits, relative to their variance, over `images`, when the part alone runs in
    INT8. images: uint8 [H, W, 3] of any size. harm: by name, what is known of an earlier run; filled in, and `keep`
    called, after every part. The graphs run on ONNX Runtime in float32: it is the rounding of INT8 that is ranked.
    """
    unknown = [part for part in parts if part.name not in harm]
    wanted = graphs.logits(None, images, threads=threads) if unknown else []
    for done, part in enumerate(unknown):
        progress("sensitivity", part.name, done / len(unknown))
        harm[part.name] = relative_error(graphs.logits(alone(plan, part, parts), images, threads=threads), wanted)
        if keep is not None:
            keep()
    return sorted((part.name for part in parts), key=lambda name: -harm[name])
