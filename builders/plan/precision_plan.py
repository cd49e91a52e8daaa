"""The precision plan: which block runs at which level. Its JSON file can be read, edited and built from."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_graphsurgeon as gs

from twins_trt.builders.plan.levels import LEVELS
from twins_trt.builders.plan.sites import LONGEST_INT8_ATTENTION, Site, block_of, find_sites
from twins_trt.codec import decode, encode
from twins_trt.errors import UsageError


@dataclass(frozen=True)
class PrecisionPlan:
    """The precision level of each block of a model.

    model: the zoo's name. level: the level that the plan started from; `reverted_flops` compares with it.
    blocks: name -> level. A name is a block (`stages.2.blocks.4.ffn`, `stages.0.pos`, `neck`, `head`), or a node or a
    group of nodes inside a block (`head/classifier`, `neck/conv.0`, `stages.2.blocks.4.attn/sr`). The longest name that
    matches a node decides. Every block of the model must be named.
    smooth: SmoothQuant's strength, 0 to 1; None for no SmoothQuant. observer: whose ranges of a calibration are used;
    None for the first observer. ranges: tensor -> largest magnitude, in place of the calibrated one. bias_correction:
    whether biases include the mean shift that INT8 causes.
    Raises `UsageError` for an unknown level, with the nearest ones.
    """

    model: str
    level: str
    blocks: dict[str, str]
    smooth: float | None = None
    observer: str | None = None
    ranges: dict[str, float] = field(default_factory=dict)
    bias_correction: bool = False

    def __post_init__(self) -> None:
        for level in (self.level, *self.blocks.values()):
            if level not in LEVELS:
                raise UsageError(f"unknown precision level {level!r}", _nearest(level, LEVELS, "levels"))
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise UsageError(f"a SmoothQuant strength of {self.smooth}", "give 0 to 1, or none")
        for tensor, largest in self.ranges.items():
            if not (math.isfinite(largest) and largest >= 0):
                raise UsageError(f"the plan's range of {tensor} is {largest}", "give its largest magnitude, or none")

    def to_json(self) -> str:
        """The plan as indented JSON text, one line a block."""
        return json.dumps(encode(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PrecisionPlan:
        """The plan that `to_json` wrote, or that a person edited. Raises `UsageError` with the field that is wrong."""
        try:
            return decode(cls, json.loads(text))
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"precision plan: {error}", "mend the plan file, or write a new one") from error

    def with_level(self, block: str, level: str) -> PrecisionPlan:
        """This plan with one block at another level. block: a name of the plan, or a name inside one of its blocks.

        Names inside the block that have entries of their own keep them. Raises `UsageError` for an unknown block or
        level.
        """
        if block not in self.blocks and not ("/" in block and block_of(block) in self.blocks):
            raise UsageError(f"the plan has no block {block!r}", _nearest(block, self.blocks, "blocks"))
        return replace(self, blocks={**self.blocks, block: level})

    def reverted(self, names: Iterable[str]) -> PrecisionPlan:
        """This plan with each of `names`, and every name inside it, at FP16. Raises as `with_level` does."""
        plan = self
        for name in names:
            finer = [other for other in self.blocks if name in _groups(other)]
            for each in (name, *finer):
                plan = plan.with_level(each, "fp16")
        return plan

    def level_of(self, node: str) -> str:
        """The level of one node. Raises `UsageError` if the plan does not name the node's block."""
        for name in _groups(node):
            if name in self.blocks:
                return self.blocks[name]
        raise UsageError(f"the plan of {self.model} says nothing about {node}", "add its block to the plan")

    def int8_sites(self, graph: gs.Graph | Sequence[Site]) -> tuple[Site, ...]:
        """The sites that run in INT8. graph: the FP32 graph, or its `find_sites`.

        An attention with more keys than the compiler fuses in INT8, or with a dynamic number of keys, stays FP16 at
        every level. Raises `UsageError` for a name that the graph does not have, and for a block of the graph that the
        plan does not name.
        """
        sites = _as_sites(graph)
        self._check_names(sites)
        return tuple(site for site in sites if site.kind in LEVELS[self.level_of(site.node)] and _possible(site))

    def level_flops(self, graph: gs.Graph | Sequence[Site]) -> float:
        """The FLOPs that the uniform plan of this plan's `level` runs in INT8.

        Raises `UsageError` for a graph of dynamic size, whose FLOPs are not known.
        """
        return sum(site.flops for site in self._level_sites(_as_sites(graph)))

    def reverted_flops(self, graph: gs.Graph | Sequence[Site]) -> float:
        """The part of `level_flops` that this plan does not run in INT8. Raises as `level_flops` does."""
        sites = _as_sites(graph)
        kept = {site.node for site in self.int8_sites(sites)}
        return sum(site.flops for site in self._level_sites(sites) if site.node not in kept)

    def _level_sites(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        if any(site.flops == 0 for site in sites):
            raise UsageError("a graph of dynamic size has no number of FLOPs", "count them on a graph of a fixed size")
        return uniform_plan(sites, self.level, model=self.model).int8_sites(sites)

    def _check_names(self, sites: Iterable[Site]) -> None:
        # A graph for a CPU has no site at the classifier, but a plan made for a GPU names it.
        known = {"head/classifier", *(name for site in sites for name in _groups(site.node))}
        for name in self.blocks:
            if name not in known:
                raise UsageError(f"{self.model} has no block {name!r}", _nearest(name, known, "blocks"))


def read_plan(path: str | Path) -> PrecisionPlan:
    """Reads a plan file. Raises `UsageError` if it cannot be read or is no plan."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the plan {path} cannot be read: {error}", "name a plan.json as a bundle holds it") from error
    try:
        return PrecisionPlan.from_json(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error.cause}", error.fix) from error


def uniform_plan(
    graph: gs.Graph | Sequence[Site],
    level: str,
    *,
    model: str | None = None,
    smooth: float | None = None,
) -> PrecisionPlan:
    """The plan with every block at `level`, except the classifier and the positional convolutions, which are FP16.

    The rounding of the classifier shows directly in the mask. The positional convolutions are less than 1 % of the
    FLOPs, and they read the residual stream itself. model: the graph's name by default. smooth: SmoothQuant's strength.
    """
    sites = _as_sites(graph)
    blocks = dict.fromkeys((block_of(site.node) for site in sites), level)
    for site in sites:
        if site.positional:
            blocks[block_of(site.node)] = "fp16"
        elif site.classifier:
            blocks[site.node] = "fp16"
    name = model if model is not None else getattr(graph, "name", "")
    return PrecisionPlan(name, level, blocks, smooth)


def _groups(node: str) -> Iterator[str]:
    """The node and every group that it is in, from the smallest: `neck/conv.0.phase.01`, `neck/conv.0.phase`,
    `neck/conv.0`, `neck/conv`, `neck`."""
    block, *inner = node.split("/")
    for depth in range(len(inner), 0, -1):
        parts = inner[depth - 1].split(".")
        for count in range(len(parts), 0, -1):
            yield "/".join([block, *inner[: depth - 1], ".".join(parts[:count])])
    yield block


def _possible(site: Site) -> bool:
    return site.kind != "attention" or 0 < site.keys <= LONGEST_INT8_ATTENTION


def _as_sites(graph: gs.Graph | Sequence[Site]) -> Sequence[Site]:
    return find_sites(graph) if isinstance(graph, gs.Graph) else graph


def _nearest(name: str, known: Iterable[str] | Mapping[str, object], what: str) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    return f"nearest {what}: {', '.join(close)}" if close else f"{what}: {', '.join(names[:8])}"
