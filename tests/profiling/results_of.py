"""Profiles made up for tests."""

from __future__ import annotations

from collections.abc import Sequence

from twins_trt.profiling.results import (
    Batch,
    Conditions,
    Energy,
    Latency,
    Layer,
    Machine,
    Measurement,
    Memory,
    Profile,
    ProfileOptions,
    Ratio,
    Subject,
    WarmUp,
)


def measurement(label: str, milliseconds: Sequence[float] = (10.0, 11.0, 12.0)) -> Measurement:
    """Calls of these milliseconds, of which 2 ms decode and all but 1 ms of the rest is the engine. Observed calls are
    1 ms longer."""
    seconds = [each / 1e3 for each in milliseconds]
    return Measurement(
        subject=Subject(
            label=label,
            kind="bundle",
            name=f"{label}.bundle",
            engine="onnxruntime",
            precision="fp32",
            size=(24, 32),
            input="image uint8 [1, 24, 32, 3]",
            output="mask uint8 [1, 24, 32]",
            measured_on="a test",
            graph_sha256="ab" * 32,
        ),
        warm_up=WarmUp(12, 0.1, True),
        end_to_end=Latency.of(seconds),
        call=Latency.of([each - 0.002 for each in seconds]),
        stages={"decode": Latency.of([0.002] * len(seconds)), "engine": Latency.of([e - 0.003 for e in seconds])},
        calls_per_round=1,
        batches=(Batch(4, Latency.of([0.020, 0.020])),),
        layers=(Layer("head/a", "Conv", 3.0, "head"), Layer("b", "Add", 0.5), Layer("head/c", "Relu", 1.0, "head")),
        memory=Memory(12.5, 20.0, None),
        energy=Energy("INA3221 (VDD_IN)", 9.5, 4.0, 0.12, 5.0, 396),
        observed_call=Latency.of([each - 0.001 for each in seconds]),
    )


def profile(*measurements: Measurement) -> Profile:
    machine = Machine("a processor", 2, 24, "Linux x86_64")
    return Profile(
        created="2026-01-02T03:04:05+00:00",
        command="twins-trt profile x.bundle",
        machine=machine,
        versions={"python": "3.11.7", "onnxruntime": "1.32.0"},
        settings=ProfileOptions(rounds=3, calls=1, batches=(4,), picture="scene of 24x32"),
        before=Conditions(0.5, 0.25, {"cpu": 2600.0}, {"cpu": 40.0}, "MAXN", (), {"stolen": 1}),
        after=Conditions(1.5, clocks_mhz={"cpu": 2600.0}),
        seconds=12.5,
        measurements=measurements,
        ratios=(Ratio("x", "y", "end_to_end", 1.25, 1.2, None, 3),),
        warnings=("the machine was busy",),
    )
