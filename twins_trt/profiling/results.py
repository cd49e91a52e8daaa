"""The content of `profile.json`: the figures, and everything that is needed to trust them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from twins_trt.codec import decode, encode
from twins_trt.errors import ProfileError
from twins_trt.files import whole_file
from twins_trt.profiling.statistics import jitter, quantile
from twins_trt.spelling import spelled

FORMAT_VERSION = 1
PROFILE = "profile.json"

Compared = Literal["end_to_end", "call", "engine"]
COMPARED: tuple[Compared, ...] = ("end_to_end", "engine")
"""What a profile gives ratios of."""

STAGES = ("decode", "preprocess", "copy", "engine", "postprocess")
"""The stages of an observed call, in order. `copy`: between host and device, both ways; absent on a CPU."""


@dataclass(frozen=True)
class Latency:
    """Times of single calls, in milliseconds.

    samples: every timed call, in order. A quantile is None where there are too few samples for it (p99 needs 100).
    jitter: the mean absolute difference of neighbouring calls.
    """

    samples: tuple[float, ...]
    mean: float
    p50: float
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    jitter: float | None = None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Summarizes the seconds of each call; there is at least one."""
        samples = tuple(round(1e3 * each, 4) for each in seconds)  # a tenth of a microsecond
        p90, p95, p99 = (_rounded(quantile(samples, share)) for share in (0.90, 0.95, 0.99))
        middle = sorted(samples)
        p50 = (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2
        mean = sum(samples) / len(samples)
        return cls(samples, round(mean, 4), round(p50, 4), p90, p95, p99, _rounded(jitter(samples)))


@dataclass(frozen=True)
class WarmUp:
    """What ran before anything was kept.

    calls, seconds: how much. stable: whether the times had settled; False where the time limit ended the warm-up.
    """

    calls: int
    seconds: float
    stable: bool


@dataclass(frozen=True)
class Settling:
    """How clocks and latencies became steady while all candidates ran in turn.

    seconds: how long that took. windows: how many stretches of time were compared. steady: whether the last ones
    agreed; False where the time limit came first.
    """

    seconds: float
    windows: int
    steady: bool


@dataclass(frozen=True)
class Batch:
    """One point of the throughput sweep: calls of `size` pictures, from arrays in memory to masks in memory."""

    size: int
    latency: Latency

    @property
    def images_per_second(self) -> float:
        """The throughput at the median latency."""
        return 1e3 * self.size / self.latency.p50


@dataclass(frozen=True)
class Layer:
    """One operation, named as the runtime names it.

    milliseconds: mean of a call. block: the model block it belongs to (`stages.2.blocks.4.ffn`), None if unknown.
    """

    name: str
    operator: str
    milliseconds: float
    block: str | None = None


@dataclass(frozen=True)
class Memory:
    """Memory in MiB, None where it is not known.

    host_mib: what opening and the first call added to the resident memory of the process. host_peak_mib: the most that
    they added at any moment. device_mib: what the engine holds on the device.
    """

    host_mib: float | None = None
    host_peak_mib: float | None = None
    device_mib: float | None = None


@dataclass(frozen=True)
class Energy:
    """Energy of a steady run.

    source: `NVML`, `INA3221` or `tegrastats`, with what was read. watts: mean of the run. idle_watts: before the run.
    joules_per_image: all that the board or module drew, idle included. seconds, images: of the run.
    """

    source: str
    watts: float
    idle_watts: float | None
    joules_per_image: float
    seconds: float
    images: int


@dataclass(frozen=True)
class Subject:
    """What was measured.

    label: unique in the file. kind: a bundle, a plain ONNX file or a PyTorch model. name: of the file or model, without
    its folder. engine: what executed it (`onnxruntime`, `tensorrt`, `pytorch`). precision: of the graph, None if
    unknown. size: (height, width) of the network's input. input, output: tensors in words. measured_on: the device, in
    words. batch: pictures in a call; more than 1 where the graph is fixed to it.
    simulated: true where something else stood in for the engine that ships (the graph of a bundle with TensorRT engines
    on ONNX Runtime). graph_sha256, weights_sha256: of the file that ran and of the checkpoint behind it.
    threads: CPU threads, None for one per core.
    """

    label: str
    kind: Literal["bundle", "onnx", "torch"]
    name: str
    engine: str
    precision: str | None
    size: tuple[int, int]
    input: str
    output: str
    measured_on: str
    batch: int = 1
    simulated: bool = False
    model: str | None = None
    graph_sha256: str | None = None
    weights_sha256: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Measurement:
    """The figures of one subject.

    end_to_end: from the encoded picture in a file to its mask, at its own size, in host memory. call: the same calls
    without decoding: a picture in memory to its mask. Nothing is observed in them.
    stages: by name of `STAGES`, of other calls, as many, that are observed and wait for each stage. They do not add up,
    because there is glue between them. observed_call: `call` of the observed calls. It is None in files from before
    there were two kinds of calls: there, all were observed.
    calls_per_round: so many samples in a row belong to one round, of each kind of calls.
    """

    subject: Subject
    warm_up: WarmUp
    end_to_end: Latency
    call: Latency
    stages: Mapping[str, Latency]
    calls_per_round: int
    batches: tuple[Batch, ...] = ()
    layers: tuple[Layer, ...] = ()
    memory: Memory = field(default_factory=Memory)
    energy: Energy | None = None
    observed_call: Latency | None = None

    def rounds(self, of: Compared) -> list[list[float]]:
        """Milliseconds per picture of every call, by round."""
        latency = self.stages["engine"] if of == "engine" else self.end_to_end if of == "end_to_end" else self.call
        samples = [each / self.subject.batch for each in latency.samples]
        return [samples[i : i + self.calls_per_round] for i in range(0, len(samples), self.calls_per_round)]

    @property
    def overhead(self) -> float:
        """The share by which an observed call takes longer than its engine and copies, all at the median."""
        engine = self.stages["engine"].p50 + (self.stages["copy"].p50 if "copy" in self.stages else 0.0)
        return (self.observed_call or self.call).p50 / engine - 1

    def blocks(self) -> dict[str, float]:
        """Milliseconds of each model block, slowest first; `other` holds the layers of no block."""
        total: dict[str, float] = {}
        for layer in self.layers:
            name = layer.block or "other"
            total[name] = total.get(name, 0.0) + layer.milliseconds
        return dict(sorted(total.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as `baseline` the subject `label` is, from rounds in which both ran.

    of: what is compared, per picture. value: the ratio of the two medians of a round, and of these ratios the median
    over rounds. low, high: its 95 % bootstrap interval, None for a single round.
    """

    label: str
    baseline: str
    of: Compared
    value: float
    low: float | None
    high: float | None
    rounds: int


@dataclass(frozen=True)
class Machine:
    """The machine that measured.

    processor: model and vector extensions. cores: how many this process may use. gpu: name and target, None without
    one. board: the model of a Jetson.
    """

    processor: str
    cores: int
    memory_gib: int | None
    system: str
    gpu: str | None = None
    board: str | None = None


@dataclass(frozen=True)
class Conditions:
    """The state of the machine at one moment.

    load_average: of the last minute. busy: the share of the processors' time that was in use just before, None where
    it was not watched. clocks_mhz: by name (`cpu`, `gpu`, `gpu_max`, `memory`, `memory_max`). temperatures_c: by
    sensor. limits_c: by sensor, the temperature that slows the machine down. power_mode: nvpmodel of a Jetson, power
    limit of a GPU. throttled: what held the clocks back, in words.
    events: counters of throttling and of time stolen by a hypervisor; a warning says where one grew over the run.
    """

    load_average: float | None = None
    busy: float | None = None
    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    power_mode: str | None = None
    throttled: tuple[str, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    limits_c: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ProfileOptions:
    """How to measure. Times in seconds.

    rounds: of interleaved measuring. calls: timed calls of a subject in a round, and as many observed ones.
    warm_up_s: of each by itself, at most. settle_s: of all in turn after that, at most, until clocks and latencies are
    steady; 0 does not wait for that. batches: sizes of the throughput sweep. threads: of the CPU, None for
    one per core. picture: what is segmented, with its size. layers: whether to time layers, in a session of their own.
    power_s: length of the steady run in which energy is measured, 0 for none.
    """

    rounds: int = 20
    calls: int = 5
    warm_up_s: float = 30.0
    batches: tuple[int, ...] = ()
    threads: int | None = None
    picture: str = ""
    layers: bool = True
    power_s: float = 5.0
    settle_s: float = 0.0


@dataclass(frozen=True)
class Profile:
    """The content of `profile.json`.

    before, after: the machine's state around the rounds; seconds: between the two. during: between rounds, right after
    a call; empty in files from before it was read. settled: None where `settle_s` was 0. warnings: what makes the
    figures less reliable than they look, in words. interrupted: Ctrl-C ended it, and only whole rounds are kept.
    """

    created: str
    command: str
    machine: Machine
    versions: Mapping[str, str]
    settings: ProfileOptions
    before: Conditions
    after: Conditions
    seconds: float
    measurements: tuple[Measurement, ...]
    ratios: tuple[Ratio, ...] = ()
    warnings: tuple[str, ...] = ()
    interrupted: bool = False
    during: tuple[Conditions, ...] = ()
    settled: Settling | None = None
    format_version: int = FORMAT_VERSION

    def of(self, label: str) -> Measurement:
        """The measurement called `label`. Raises ProfileError if there is none."""
        for measurement in self.measurements:
            if measurement.subject.label == label:
                return measurement
        has = ", ".join(m.subject.label for m in self.measurements)
        raise ProfileError(f"nothing was measured as {label!r}", f"use one of: {has}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        plain: dict[str, Any] = encode(self)
        return {"format_version": plain.pop("format_version"), **plain}

    @classmethod
    def from_json(cls, values: Any) -> Profile:
        """The inverse of `to_json`. Raises ProfileError with the field that is missing, unknown, mistyped or newer."""
        if not isinstance(values, dict):
            raise ProfileError(f"{PROFILE} holds {type(values).__name__}, not an object")
        version = values.get("format_version")
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise ProfileError(
                f"{PROFILE}: format_version is {version!r}, this twins-trt reads {FORMAT_VERSION}",
                "measure again, or: pip install --upgrade twins-trt",
            )
        try:
            return decode(cls, values)
        except ValueError as error:
            raise ProfileError(f"{PROFILE}: {error}", "measure again: twins-trt profile") from error


def write_profile(path: str | Path, profile: Profile) -> None:
    """Writes `profile` to `path`, whole or not at all. Raises ProfileError where the disk refuses."""
    try:
        with whole_file(Path(path)) as file:
            file.write(dump_profile(profile))
    except OSError as error:
        raise ProfileError(f"{path} cannot be written: {error}", f"give another {spelled('out')}") from error


def dump_profile(profile: Profile) -> bytes:
    """The bytes of `profile.json`.

    Each innermost list or object (samples, layers) is on one line, so that a diff of two files can be read.
    """
    text = json.dumps(profile.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    # A line break is never inside of a string, so nothing but the layout is touched.
    innermost = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda match: re.sub(r"\n\s*", " ", match[0]), text)
    return (innermost + "\n").encode()


def read_profile(path: str | Path) -> Profile:
    """Reads a profile. Raises ProfileError for a file that is missing, is no JSON, or no profile of this version."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(
            f"{path} cannot be read: {error.strerror}", "give a file that twins-trt profile wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path} is no JSON: {error}", "give a file that twins-trt profile wrote") from error
    try:
        return Profile.from_json(values)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error.cause}", error.fix) from error


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
