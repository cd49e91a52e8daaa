"""Times two bundles in turn on this device, and passes or fails one for how many times as fast it is."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from twins_trt.builders.gate.shipping import advise
from twins_trt.device import current_device
from twins_trt.errors import EngineError, ProfileError, UsageError
from twins_trt.profiling.candidates import bundle_candidate
from twins_trt.profiling.machine import ROOT
from twins_trt.profiling.measure import profile
from twins_trt.profiling.results import Compared, Measurement, Profile, ProfileOptions, Ratio
from twins_trt.profiling.speed import (
    DECIDES,
    SPEED,
    SpeedVerdict,
    TimedBundle,
    dump_speed,
    outdated,
    read_speed,
    times_as_fast,
)
from twins_trt.profiling.statistics import ratio_of_medians
from twins_trt.progress import Progress
from twins_trt.runtime import Bundle, open_bundle
from twins_trt.runtime.advice import engine_command, for_gpus
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.runtime.engines import CPU_KINDS, check_kind, kind_here
from twins_trt.runtime.tensorrt.selection import engine_of
from twins_trt.spelling import spelled

RATIOS: tuple[Compared, ...] = (DECIDES, "end_to_end", "engine")
log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class Pair:
    """Two bundles that can be compared. names: in the verdict. engine: as asked for. kinds: of the engines that run."""

    ours: Bundle
    theirs: Bundle
    names: tuple[str, str]
    engine: str
    kinds: tuple[str, str]

    @property
    def on_cpu(self) -> bool:
        return self.kinds[0] in CPU_KINDS

    @property
    def simulated(self) -> bool:
        """Whether a CPU runs the graphs in place of engines that the bundles have, or that their devices compile."""
        return self.on_cpu and any(map(for_gpus, (self.ours, self.theirs)))


def pair_of(ours: Bundle, theirs: Bundle, *, engine: str = "auto") -> Pair:
    """Checks that the two can be compared here. engine: what runs them, as in `Segmenter`, but torch.

    They have to do the same work: the same model and classes, size, batch and outputs. Weights and precision may
    differ: times do not depend on the values of weights, and precisions are what is compared.
    Raises `UsageError` for bundles of different work, for one that is named twice, and for the engine torch;
    `EngineError` where one runs on the CPU and the other on the GPU; `MissingDependencyError` where none can run.
    """
    check_kind(engine)
    if engine == "torch":
        raise UsageError("the torch engine runs the weights, not the graph that is timed", "name another engine")
    if ours.path.samefile(theirs.path):
        raise UsageError(f"{theirs.path} is named twice", f"name another one: {spelled('against', 'OTHER.bundle')}")
    for what, mine, other in _work(ours, theirs):
        if mine != other:
            raise UsageError(
                f"{ours.path} and {theirs.path} do different work: {what} is {mine} and {other}",
                f"name a bundle of the same {what}: {spelled('against', 'OTHER.bundle')}",
            )
    first, second = (engine if engine != "auto" else kind_here(each) for each in (ours, theirs))
    if (first in CPU_KINDS) != (second in CPU_KINDS):
        stays, kind, gpu = (ours, first, second) if first in CPU_KINDS else (theirs, second, first)
        device = current_device()
        raise EngineError(
            f"{stays.path} would run on the CPU ({kind}) and the other one on the GPU ({gpu}): it has no engine for it",
            None if device is None else engine_command(stays, gpu, device.target),
        )
    alike = ours.path.name == theirs.path.name
    names = [str(each.path) if alike else each.path.name for each in (ours, theirs)]
    return Pair(ours, theirs, (names[0], names[1]), engine, (first, second))


def time_pair(pair: Pair, options: ProfileOptions, *, root: Path = ROOT, progress: Progress | None = None) -> Profile:
    """Times both in turn, in rounds in which the other one begins every time.

    Raises KeyboardInterrupt if it is interrupted, `BundleError` for a bundle that is damaged or was replaced meanwhile,
    and what opening or running an engine raises.
    """
    candidates = [  # by the engine as asked for: then `auto` says why it takes a CPU where there is a GPU
        bundle_candidate(bundle.path, pair.engine, label=name)
        for bundle, name in zip((pair.ours, pair.theirs), pair.names, strict=True)
    ]
    measured = profile(candidates, options, baseline=pair.names[1], root=root, progress=progress)
    if measured.interrupted:  # the rounds so far would give an interval that is too narrow
        raise KeyboardInterrupt
    for bundle in (pair.ours, pair.theirs):
        bundle.refuse_replaced()
    return measured


def judge_speed(pair: Pair, measured: Profile, *, min_speedup: float = 1.0) -> SpeedVerdict:
    """The verdict that follows from a profile of both.

    A round gives one ratio: the median time of a call of `theirs` over that of `ours`. `ratio_of_medians` says how the
    interval follows from the rounds. The bundle passes if the whole 95 % interval lies above `min_speedup`. So one that
    is not faster fails, and so does one that may be: to ship it costs accuracy for certain, and the gain is a guess.
    More rounds narrow the interval.
    """
    mine, other = (measured.of(name) for name in pair.names)
    ratios = tuple(_ratio(of, mine, other) for of in RATIOS)
    reasons = _reasons(pair.names, ratios[0], min_speedup)
    named = tuple(zip(pair.names, (pair.ours, pair.theirs), strict=True))
    if pair.simulated:
        again = shlex.join(["twins-trt", "gate", str(pair.ours.path), "--against", str(pair.theirs.path)])
        ship, advice = None, f"a CPU ran both: this says nothing of their engines. Time them on the device: {again}"
    else:
        ship, advice = advise(*named, passed=not reasons, ratio=ratios[0])
    engines = [engine_of(bundle, kind) for (_, bundle), kind in zip(named, pair.kinds, strict=True)]
    sides = [
        TimedBundle.of(bundle, measurement, name=name, file=None if engine is None else engine.file)
        for (name, bundle), measurement, engine in zip(named, (mine, other), engines, strict=True)
    ]
    return SpeedVerdict.of(
        measured,
        (sides[0], sides[1]),
        ratios=ratios,
        min_speedup=min_speedup,
        reasons=reasons,
        simulated=pair.simulated,
        ship=ship,
        advice=advice,
    )


def record_speed(bundle: Bundle, found: SpeedVerdict) -> Bundle:
    """Writes the verdict into the bundle as `speed.json`. An error or a kill leaves the bundle as it was.

    A simulation does not replace what a device measured of the same engine: then nothing is written, and a warning says
    so. No figure goes into the manifest: a figure names neither the other bundle nor the interval, and would stay when
    the engine is replaced. Raises BundleError as `amend_bundle` does, such as for another graph or engine.
    """
    try:
        before = read_speed(open_bundle(bundle.path, verify=False))
    except ProfileError as error:
        log.warning("%s: the earlier speed verdict cannot be read: %s", bundle.path, error.cause)
        before = None
    kept = before is not None and not before.simulated and outdated(before, bundle.manifest) is None
    if found.simulated and kept and before is not None:
        log.warning("%s keeps its speed verdict, which was measured on %s", bundle.path, before.measured_on)
        return bundle
    return amend_bundle(bundle, {SPEED: dump_speed(found)})


def _work(ours: Bundle, theirs: Bundle) -> list[tuple[str, str, str]]:
    """What has to be the same: its name, and it in both."""
    facts = [_facts(each) for each in (ours, theirs)]
    return [(name, value, facts[1][name]) for name, value in facts[0].items()]


def _facts(bundle: Bundle) -> dict[str, str]:
    interface = bundle.interface
    (low, high), (narrow, wide), opt = *interface.size_limits, interface.opt_size
    return {
        "model": bundle.manifest.model,
        "number of classes": str(interface.num_classes),
        "size": "x".join(map(str, interface.size)) if interface.size else f"{low}-{high}x{narrow}-{wide}, best {opt}",
        "batch": "-".join(map(str, dict.fromkeys(interface.batch_limits))),
        "outputs": ", ".join(f"{each.name} {list(each.shape)}" for each in interface.outputs),
    }


def _ratio(of: Compared, mine: Measurement, other: Measurement) -> Ratio:
    rounds = mine.rounds(of)
    value, low, high = ratio_of_medians(rounds, other.rounds(of))
    return Ratio(mine.subject.label, other.subject.label, of, value, low, high, len(rounds))


def _reasons(names: tuple[str, str], ratio: Ratio, min_speedup: float) -> tuple[str, ...]:
    """Why the verdict is a failure; empty if it is none."""
    if ratio.low is None or ratio.high is None:
        return (f"{ratio.rounds} rounds give no interval",)
    if ratio.low > min_speedup:
        return ()
    shown = f"{names[0]} is {times_as_fast(ratio)} times as fast as {names[1]}"
    wanted = "faster" if min_speedup == 1 else f"more than {min_speedup:g} times as fast"
    if ratio.high <= min_speedup:
        return (f"{shown}: not {wanted}",)
    more = spelled("rounds", 4 * ratio.rounds)  # half as wide an interval
    return (f"{shown}: not shown to be {wanted}; more rounds may show it: {more}",)
