"""`gate --against`: the verdict on a bundle's speed, beside another bundle: request, defaults, flags and call."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

from twins_trt.errors import BundleError, UsageError
from twins_trt.progress import Progress
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.running import ENGINE_FLAG, THREADS_FLAG, bundle_path
from twins_trt.verbs.kinds import NUMBER, WHOLE

if TYPE_CHECKING:
    from twins_trt.builders.gate.speed import Pair
    from twins_trt.profiling.results import ProfileOptions
    from twins_trt.profiling.speed import SpeedVerdict
    from twins_trt.runtime import Bundle

log = logging.getLogger("twins_trt")

MIN_ROUNDS = 6
"""Fewer rounds give no 95 % interval of a median: of 5, all lie on one side of it in 6 % of the cases."""
MIN_SPEEDUP, ROUNDS, CALLS, WARM_UP_S = 1.0, 20, 5, 20.0

_DAY = 86400  # seconds


@dataclass(frozen=True)
class SpeedRequest:
    """A speed verdict.

    bundle, against: folders. min_speedup: how many times as fast `bundle` has to be shown to be. rounds: in which both
    run in turn, at least `MIN_ROUNDS`. calls: of each in a round. warm_up: at most so many seconds until clocks and
    latencies are steady, after the first calls. engine: what runs both, of `runtime.engines.KINDS` but torch, or
    `auto`. threads: of the CPU.
    Raises `UsageError` for a value of the wrong kind.
    """

    bundle: str = ""
    against: str = ""
    min_speedup: float = MIN_SPEEDUP
    rounds: int = ROUNDS
    calls: int = CALLS
    warm_up: float = WARM_UP_S
    engine: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)


AGAINST = "against another bundle"

OWN: tuple[Flag, ...] = (
    Flag("--against", "against", "time this bundle in turn with the other", metavar="OTHER.bundle", group=AGAINST),
    Flag(
        "--min-speedup",
        "min_speedup",
        "how many times as fast it has to be shown to be; default: {default}",
        NUMBER,
        "TIMES",
        group=AGAINST,
    ),
    Flag("--rounds", "rounds", f"at least {MIN_ROUNDS}; default: {{default}}", WHOLE, "N", group=AGAINST),
    Flag("--calls", "calls", "timed calls of each in a round; default: {default}", WHOLE, "N", group=AGAINST),
    Flag(
        "--warm-up",
        "warm_up",
        "wait at most so many seconds for steady clocks; default: {default}",
        NUMBER,
        "S",
        group=AGAINST,
    ),
)
"""The flags that `gate` has for this verdict alone. It shares the others with the verdict on accuracy."""

TABLE: tuple[Flag, ...] = (Flag("BUNDLE", "bundle", "the bundle to judge"), *OWN, ENGINE_FLAG, THREADS_FLAG)

_GROUPS = {AGAINST: "Alone, accuracy is not judged. With --data or --pack there are two verdicts, and both count."}
FLAGS = FlagTable(SpeedRequest, TABLE, groups=_GROUPS)
OWN_FLAGS = FlagTable(SpeedRequest, OWN, groups=_GROUPS)


def compare_speed(
    bundle: str | PathLike[str] | Bundle,
    against: str | PathLike[str] | Bundle,
    *,
    min_speedup: float | None = None,
    rounds: int | None = None,
    calls: int | None = None,
    warm_up: float | None = None,
    engine: str | None = None,
    threads: int | None = None,
    record: bool = True,
    progress: Progress | None = None,
) -> SpeedVerdict:
    """Times two bundles in turn on this device, and judges whether the first is faster.

        passed = twins_trt.compare_speed("int8.bundle", "fp16.bundle").passed

    bundle, against: their folders, or opened ones; of the same model, size, batch and outputs. record: write the
    verdict into `bundle` (`speed.json`). `SpeedRequest` describes the other parameters. progress: called at every step,
    and while one lasts.
    The bundle passes if the whole 95 % interval of the ratio lies above `min_speedup`; `judge_speed` says why.
    Returns the verdict, passed or not, with which bundle to ship and every number behind it.
    Raises KeyboardInterrupt if it is interrupted, with nothing written; `UsageError` for bundles that do different
    work, `BundleError` for one that is damaged or was replaced meanwhile, `EngineError` where an engine refuses one, or
    where one of them would run on the CPU and the other on the GPU, `MissingDependencyError` where no engine can run.
    """
    request = FLAGS.ask(
        None,
        bundle=bundle_path(bundle),
        against=bundle_path(against),
        min_speedup=min_speedup,
        rounds=rounds,
        calls=calls,
        warm_up=warm_up,
        engine=engine,
        threads=threads,
    )
    opened = tuple(None if isinstance(each, (str, PathLike)) else each for each in (bundle, against))
    return time_both(resolve_speed(request, *opened), record=record, progress=progress)


@dataclass(frozen=True)
class SpeedJob:
    """What will be timed, and how. Nothing has been timed yet."""

    request: SpeedRequest
    pair: Pair
    options: ProfileOptions

    @property
    def text(self) -> str:
        """What it would do, in one sentence."""
        (ours, theirs), kinds = self.pair.names, " and ".join(dict.fromkeys(self.pair.kinds))
        instead = " in place of the engines" if self.pair.simulated else ""
        rounds, calls = self.options.rounds, self.options.calls
        return f"{ours} and {theirs} would be timed on {kinds}{instead}, {rounds} rounds of {calls} calls"

    def to_json(self) -> dict[str, object]:
        """The same as plain values."""
        names, options = self.pair.names, self.options
        return {
            "bundle": names[0],
            "against": names[1],
            "engines": list(self.pair.kinds),
            "simulated": self.pair.simulated,
            "min_speedup": self.request.min_speedup,
            "rounds": options.rounds,
            "calls": options.calls,
            "warm_up": options.settle_s,
        }


def resolve_speed(request: SpeedRequest, bundle: Bundle | None = None, against: Bundle | None = None) -> SpeedJob:
    """The job of a request. bundle, against: those that it names, if they are open. Raises as `compare_speed`."""
    from twins_trt.builders.gate.speed import pair_of
    from twins_trt.profiling.results import ProfileOptions
    from twins_trt.runtime import open_bundle

    if not 0 < request.min_speedup < math.inf:
        raise UsageError(f"{spelled('min_speedup')} is {request.min_speedup}", "give a factor such as 1.0")
    if request.rounds < MIN_ROUNDS:
        raise UsageError(
            f"{spelled('rounds')} is {request.rounds}, too few for an interval", f"give at least {MIN_ROUNDS}"
        )
    if request.calls < 1:
        raise UsageError(f"{spelled('calls')} is {request.calls}", "give at least 1")
    if not 0 <= request.warm_up < _DAY:
        raise UsageError(f"{spelled('warm_up')} is {request.warm_up}", "give seconds, 0 or more")
    ours, theirs = bundle or open_bundle(request.bundle), against or open_bundle(request.against)
    options = ProfileOptions(
        rounds=request.rounds,
        calls=request.calls,
        warm_up_s=request.warm_up,
        settle_s=request.warm_up,
        threads=request.threads,
        layers=False,
        power_s=0.0,
    )
    return SpeedJob(request, pair_of(ours, theirs, engine=request.engine), options)


def time_both(job: SpeedJob, *, record: bool = True, progress: Progress | None = None) -> SpeedVerdict:
    """Does the job. record: write the verdict into the bundle. Raises as `compare_speed`."""
    from twins_trt.builders.gate.speed import judge_speed, record_speed, time_pair

    measured = time_pair(job.pair, job.options, progress=progress)
    found = judge_speed(job.pair, measured, min_speedup=job.request.min_speedup)
    if record:
        try:
            record_speed(job.pair.ours, found)
        except BundleError:
            log.warning("verdict that could not be written:\n%s", found.table())
            raise
    return found
