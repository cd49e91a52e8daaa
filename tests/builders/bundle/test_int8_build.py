"""INT8 builds from weights to bundle: ranges, plan, gate and engines; no bundle is ungated unless that is requested."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

from int8_builds import FP16, from_files, int8, sabotaged
from pictures import MODEL
from told import Told

from twins_trt.builders.bundle.resolve import resolve
from twins_trt.builders.bundle.run import build_bundle
from twins_trt.builders.engine import read_header
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.calib import Ranges
from twins_trt.errors import DataError, GateError, UsageError
from twins_trt.runtime import Bundle, Segmenter, open_bundle


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_bundle(int8(data, tmp_path_factory.mktemp("built") / "x.bundle")).bundle


def test_a_bundle_holds_plan_ranges_and_verdict(built: Bundle) -> None:
    assert set(open_bundle(built.path).files) == {"graph.onnx", "plan.json", "calibration.json", "gate.json"}
    assert (built.manifest.precision, built.manifest.gate) == ("int8", "passed")
    plan = PrecisionPlan.from_json(built.file("plan.json").read_text())
    assert (plan.level, plan.observer) == ("int8-linear+conv", "mse")
    assert plan.blocks["stages.2.blocks.1.ffn"] == "int8-linear+conv" and plan.blocks["stages.2.pos"] == "fp16"
    ranges = Ranges.from_json(built.read_json("calibration.json"))
    assert ranges.images == 8 and len(ranges.ranges["stages.0.blocks.0.ffn/norm2"].channels) == 32
    result = built.read_json("gate.json")
    assert result["passed"] and not result["simulated"] and result["images"] == 8
    assert 0 < result["agreement"] < 1  # INT8 is not float32, and not noise either
    assert result["model"] == MODEL
    header = read_header(built.graph)
    assert header.metadata["twins_trt.precision"] == "int8"
    assert header.operators["DequantizeLinear"] > 50
    assert not built.path.with_name("x.bundle.work").exists()


def test_the_steps_of_a_build(data: Path, tmp_path: Path) -> None:
    told = Told()
    build_bundle(int8(data, tmp_path / "x.bundle"), progress=told)
    assert list(dict.fromkeys(step for step, _, _ in told.calls)) == [
        "[1/6] weights",
        "[2/6] graph",
        "[3/6] calibration",
        "[4/6] plan",
        "[5/6] gate",
        "[6/6] bundle",
    ]
    assert [share for step, _, share in told.calls if step == "[3/6] calibration"][-1] == 1.0


def test_a_build_from_the_bundles_own_plan_and_ranges_is_the_same_graph(
    built: Bundle, data: Path, tmp_path: Path
) -> None:
    """The files that a person may edit, before and after an edit."""
    files = from_files(built.file("plan.json"), built.file("calibration.json"))
    again = build_bundle(int8(data, tmp_path / "again.bundle", **files)).bundle
    assert again.graph.read_bytes() == built.graph.read_bytes()
    edited = PrecisionPlan.from_json(built.file("plan.json").read_text()).with_level("neck", "fp16")
    (tmp_path / "plan.json").write_text(edited.to_json())
    files |= {"plan": str(tmp_path / "plan.json")}
    other = build_bundle(int8(data, tmp_path / "other.bundle", **files)).bundle
    assert "neck/conv.1.weight.dequantize" in again.graph.read_bytes().decode("latin1")
    assert "neck/conv.1.weight.dequantize" not in other.graph.read_bytes().decode("latin1")


def test_ranges_of_another_graph_are_refused_with_both_keys(built: Bundle, data: Path, tmp_path: Path) -> None:
    ranges = {"calibrate_on": None, "calibration": str(built.file("calibration.json"))}
    with pytest.raises(DataError, match=r"is of another graph: its key is .*, wanted is "):
        build_bundle(int8(data, tmp_path / "x.bundle", size=(96, 96), **ranges))


def test_a_failed_gate_leaves_no_bundle_but_all_that_was_reached(data: Path, tmp_path: Path) -> None:
    gate = {"min_images": 9, "fallback": False}
    with pytest.raises(GateError, match="8 images are too few") as raised:
        build_bundle(int8(data, tmp_path / "x.bundle", **gate))
    assert raised.value.exit_code == 3
    work = tmp_path / "x.bundle.work"
    assert [path.name for path in tmp_path.iterdir()] == [work.name]
    assert str(work / "plan.json") in str(raised.value.fix)
    files = from_files(work / "plan.json", work / "calibration.json")
    edited = (work / "plan.json").read_text() + "\n"
    (work / "plan.json").write_text(edited)
    with pytest.raises(GateError):  # a plan that was given is not written over
        build_bundle(int8(data, tmp_path / "x.bundle", **files, **gate))
    assert (work / "plan.json").read_text() == edited and (work / "reached.json").is_file()
    build_bundle(int8(data, tmp_path / "y.bundle", **files))


def test_a_range_of_a_tensor_that_is_not_there_is_refused(built: Bundle, data: Path, tmp_path: Path) -> None:
    plan = PrecisionPlan.from_json(built.file("plan.json").read_text())
    (tmp_path / "plan.json").write_text(replace(plan, ranges={"stages.0.blocks.0.ffn/gelo": 1.0}).to_json())
    files = from_files(tmp_path / "plan.json", built.file("calibration.json"))
    with pytest.raises(UsageError, match="no calibration observed") as raised:
        build_bundle(int8(data, tmp_path / "x.bundle", **files))
    assert "stages.0.blocks.0.ffn/gelu" in str(raised.value.fix)


def test_a_build_goes_on_after_a_kill(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def kill(step: str, detail: str, share: float | None) -> None:
        if step == "[5/6] gate" and share:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(int8(data, tmp_path / "x.bundle"), progress=kill)
    assert not (tmp_path / "x.bundle").exists()
    masks = sorted((tmp_path / "x.bundle.work" / "reference").iterdir())
    assert len(masks) == 1
    with caplog.at_level(logging.INFO):
        build_bundle(int8(data, tmp_path / "x.bundle"))
    assert "continuing after 8 images" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["x.bundle"]


def test_int8_without_a_verdict_must_be_asked_for_and_says_so(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = {"gate_on": None, "max_drop": None, "min_images": None, "min_agreement": None}
    with pytest.raises(UsageError, match="needs a gate") as raised:
        resolve(int8(data, tmp_path / "x.bundle", **nothing))
    assert 'gate_on="KIND:PATH"' in str(raised.value.fix) and "no_gate=True" in str(raised.value.fix)
    bundle = build_bundle(int8(data, tmp_path / "x.bundle", **nothing, no_gate=True)).bundle
    assert bundle.manifest.gate == "ungated" and "gate.json" not in bundle.files
    assert " --no-gate" in bundle.manifest.rebuild
    with caplog.at_level(logging.WARNING):
        Segmenter(bundle).close()
    assert "INT8 and ungated" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"opset": 17, "targets": ("89",)}, "needs opset 19"),
        ({"no_gate": True}, "exclude each other"),
        ({"calibrate_on": None}, "ranges of the activations"),
        ({"level": "int4"}, "int4"),
        ({"calib_images": -1}, "-1 calibration images"),
        ({"calibrate_on": None, "calibration": "x.json", "smooth": "search"}, "searched on images"),
        ({"calibrate_on": None, "calibration": "x.json", "bias_correction": True}, "corrected on images"),
        ({"smooth": 2.0}, "strength of 2"),
        ({"calibrate_on": None, "calibration": "x.json", "calib_images": 3}, "needs images to calibrate on"),
        ({"precision": "fp16"}, "calibrate_on applies only to INT8 builds"),
        ({"precision": "int4"}, "precision cannot be 'int4'"),
        ({"gate_on": None, "no_gate": True}, "max_drop needs images to judge on"),
        ({"gate_limit": 0}, "a gate on 0 images"),
        ({"max_evaluations": 0}, "at most 0 evaluations"),
        ({"fit": "crop"}, "no fit 'crop'"),
        ({"workspace": 64}, "workspace applies only to engines, and the target cpu has none"),
    ],
)
def test_what_does_not_fit_together(data: Path, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    if "targets" in fields:
        pytest.importorskip("tensorrt_rtx")
    with pytest.raises(UsageError, match=message):
        resolve(int8(data, tmp_path / "x.bundle", **fields))


def test_an_engine_is_int8_where_planned_and_its_verdict_is_a_simulation(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    report = build_bundle(int8(data, tmp_path / "x.bundle", targets=("89",), flavour=("tensorrt_rtx",)))
    (engine,) = report.audits
    assert report.not_int8 == {engine: ()}
    assert report.audits[engine].attentions == 8
    entry = report.bundle.read_json("audit.json")["engines"][0]
    assert entry["not_int8"] == []
    assert report.gate is not None and report.gate.simulated and report.gate.engine == "onnxruntime"
    assert report.bundle.read_json("gate.json")["simulated"] is True


def test_an_fp16_build_may_be_judged_too(data: Path, tmp_path: Path) -> None:
    bundle = build_bundle(int8(data, tmp_path / "x.bundle", **FP16)).bundle
    assert bundle.manifest.gate == "passed" and bundle.read_json("gate.json")["precision"] == "fp16"
    with pytest.raises(GateError, match="too few"):
        build_bundle(int8(data, tmp_path / "y.bundle", **FP16, max_drop=None, min_images=9))
    assert [path.name for path in tmp_path.iterdir()] == ["x.bundle"]


def test_the_fallback_repairs_one_range_that_is_far_too_small(built: Bundle, data: Path, tmp_path: Path) -> None:
    healthy = built.read_json("gate.json")["drop"]["high"]
    fields = sabotaged(built, tmp_path / "plan.json") | {"max_drop": healthy + 1.0}
    with pytest.raises(GateError, match="the mIoU may drop by"):
        build_bundle(int8(data, tmp_path / "broken.bundle", **fields, fallback=False))
    report = build_bundle(int8(data, tmp_path / "x.bundle", **fields))
    found = report.bundle.read_json("fallback.json")
    assert found["passed"] and found["reverted"] == ["stages.1.blocks.0.ffn"]
    assert max(found["harm"], key=found["harm"].get) == "stages.1.blocks.0.ffn"
    assert 0 < found["reverted_share"] < 0.1 and len(found["evaluations"]) == 2
    plan = PrecisionPlan.from_json(report.bundle.file("plan.json").read_text())
    assert plan.blocks["stages.1.blocks.0.ffn"] == "fp16" and report.bundle.manifest.gate == "passed"


def test_the_fallback_aims_for_the_floor_of_the_agreement(built: Bundle, data: Path, tmp_path: Path) -> None:
    """The drop alone would pass: agreement is a reason of its own to revert blocks."""
    fields = {**sabotaged(built, tmp_path / "plan.json"), "max_drop": 100.0, "min_agreement": 0.95}
    with pytest.raises(GateError, match=r"% of the pixels agree, 95 % are asked for") as raised:
        build_bundle(int8(data, tmp_path / "broken.bundle", **fields, fallback=False))
    assert "allow more (min_agreement)" in str(raised.value.fix)
    report = build_bundle(int8(data, tmp_path / "x.bundle", **fields))
    found = report.bundle.read_json("fallback.json")
    assert found["reverted"] == ["stages.1.blocks.0.ffn"]
    first, last = (each["agreement"] for each in found["evaluations"])
    assert first < 0.95 <= last == pytest.approx(report.gate.agreement if report.gate else 0)


def test_a_fallback_that_finds_nothing_says_what_was_the_best(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(GateError, match=r"after 2 plans: \d+ parts in FP16 .* of the FLOPs, the mIoU may drop by"):
        build_bundle(int8(data, tmp_path / "x.bundle", min_agreement=1.0, max_evaluations=2))
    work = tmp_path / "x.bundle.work"
    assert {"plan.json", "calibration.json", "gate.json", "fallback.json"} <= {path.name for path in work.iterdir()}
    assert not (tmp_path / "x.bundle").exists()
    assert sum("holds random weights" in message for message in caplog.messages) == 1  # however many plans were judged


def test_a_search_goes_on_after_a_kill(built: Bundle, data: Path, tmp_path: Path) -> None:
    max_drop = built.read_json("gate.json")["drop"]["high"] + 1.0
    request = int8(data, tmp_path / "x.bundle", **sabotaged(built, tmp_path / "plan.json"), max_drop=max_drop)

    killed = Told()

    def kill(step: str, detail: str, share: float | None) -> None:
        killed(step, detail, share)
        if detail.startswith("plan 2 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(request, progress=kill)
    assert [detail for detail in killed.details if detail.startswith("sensitivity: ")]
    told = Told()
    build_bundle(request, progress=told)
    assert not [detail for detail in told.details if detail.startswith("sensitivity")]  # known already
    assert [detail for detail in told.details if detail.startswith("plan ")] == [
        "plan 2 of at most 16: 1 parts in FP16"
    ]


def test_more_evaluations_go_on_from_the_search_that_ran_out_of_them(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The error that ends the search advises this."""
    strict = {"min_agreement": 1.0, "max_drop": 0.0}
    with pytest.raises(GateError, match="after 1 plans") as raised:
        build_bundle(int8(data, tmp_path / "x.bundle", **strict, max_evaluations=1))
    assert "try more plans (max_evaluations)" in str(raised.value.fix)
    told = Told()
    with caplog.at_level(logging.INFO), pytest.raises(GateError, match="after 2 plans"):
        build_bundle(int8(data, tmp_path / "x.bundle", **strict, max_evaluations=2), progress=told)
    assert "continuing after 8 images" in caplog.text and "dropped" not in caplog.text
    assert not [detail for detail in told.details if detail.startswith("sensitivity")]  # known already


def test_a_plan_that_is_built_from_the_work_folder_keeps_its_ranges(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(GateError):
        build_bundle(int8(data, tmp_path / "x.bundle", min_images=9, fallback=False))
    plan = str(tmp_path / "x.bundle.work" / "plan.json")
    with caplog.at_level(logging.INFO):
        build_bundle(int8(data, tmp_path / "x.bundle", plan=plan))
    assert "continuing after 8 images" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["x.bundle"]
