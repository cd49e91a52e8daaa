"""A request has the same result from Python and from a command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_driver import install_driver
from fake_tensorrt import install_compilers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")

from twins_trt.builders.bundle.resolve import resolve
from twins_trt.builders.export import DynamicDim
from twins_trt.cli.parsing import Parser
from twins_trt.device import Device
from twins_trt.errors import TwinsError, UsageError
from twins_trt.verbs.build import DEFAULTS, FLAGS, TABLE, BuildDefaults, BuildRequest
from twins_trt.verbs.command_line import on_command_line

# By field: what Python gives, and the words of a command line that ask for the same.
SAID: dict[str, list[tuple[Any, list[str]]]] = {
    "model": [(name, [name]) for name in ("twins_svt-s_fpn", "twins_pcpvt-b_upernet", "twins_svt-demo_fpn", "resnet")],
    "out": [("x.bundle", ["--out", "x.bundle"])],
    "overwrite": [(True, ["--overwrite"])],
    "checkpoint": [("nowhere.pth", ["--checkpoint", "nowhere.pth"])],
    "seeded": [(True, ["--seeded"])],
    "num_classes": [(4, ["--num-classes", "4"])],
    "padding": [("masked", ["--padding", "masked"]), ("unmasked", ["--padding", "unmasked"])],
    "weights": [("ema", ["--weights", "ema"]), ("mean", ["--weights", "mean"])],
    "conventions": [
        ({"mean": "0,0,0", "channels": "bgr"}, ["--convention", "mean=0,0,0", "--convention", "channels=bgr"]),
        (["test_mode = slide:64x64:32x32"], ["--convention", "test_mode=slide:64x64:32x32"]),
    ],
    "size": [
        ((360, 480), ["--size", "360x480"]),
        (512, ["--size", "512"]),
        ("64x96", ["--size", "64×96"]),
        ((DynamicDim(64, 96, 128), DynamicDim(64, 96, 128)), ["--size", "64:96:128"]),
        ((64, DynamicDim(64, 96, 128)), ["--size", "64x64:96:128"]),
        ("16x", ["--size", "16x"]),
        ((16, 16), ["--size", "16x16"]),
        ((9000, 64), ["--size", "9000x64"]),
    ],
    "batch": [(8, ["--batch", "8"]), (DynamicDim(1, 4, 16), ["--batch", "1:4:16"]), (0, ["--batch", "0"])],
    "precision": [(name, ["--precision", name]) for name in ("fp32", "fp16", "int8", "int4")],
    "opset": [(17, ["--opset", "17"]), (20, ["--opset=20"]), (3, ["--opset", "3"])],
    "input": [("float32", ["--input", "float32"]), ("int8", ["--input", "int8"])],
    "outputs": [(["mask", "logits"], ["--outputs", "mask,logits"]), ("logits", ["--outputs", "logits"])],
    "upernet_levels": [(2, ["--upernet-levels", "2"]), (7, ["--upernet-levels", "7"])],
    "test_scale": [((512, 2048), ["--test-scale", "2048x512"]), ("none", ["--test-scale", "none"])],
    "targets": [
        (["sm_86", "sm_89"], ["--target", "sm_86,sm_89"]),
        ("75,86", ["--target", "75,86"]),
        ("cpu", ["--target", "cpu"]),
        (["cpu", "86"], ["--target", "cpu,86"]),
        (["orin"], ["--target", "orin"]),
        (["jetson-orin", "86"], ["--target", "jetson-orin,86"]),
        (("Jetson-Thor", "sm_87"), ["--target", "Jetson-Thor,sm_87"]),
        (["rtx-4090", "h100", "l4"], ["--target", "rtx-4090,h100,l4"]),
    ],
    "jetpack": [("6.0", ["--jetpack", "6.0"]), ("7.2", ["--jetpack", "7.2"]), ("5.1", ["--jetpack", "5.1"])],
    "flavour": [
        ("tensorrt", ["--flavour", "tensorrt"]),
        (("tensorrt_rtx", "tensorrt"), ["--flavour", "tensorrt_rtx,tensorrt"]),
        ("onnx", ["--flavour", "onnx"]),
    ],
    "workspace": [(64, ["--workspace", "64"]), (0, ["--workspace", "0"])],
    "optimization_level": [(5, ["--optimization-level", "5"])],
    "timing_cache": [("a b.cache", ["--timing-cache", "a b.cache"])],
    "hardware_compatibility": [("ampere_plus", ["--hardware-compatibility", "ampere_plus"])],
    "allow_unfused": [(True, ["--allow-unfused"])],
    "with_weights": [(True, ["--with-weights"])],
    "level": [("int8-linear", ["--level", "int8-linear"]), ("int4", ["--level", "int4"])],
    "plan": [("plan.json", ["--plan", "plan.json"])],
    "calibrate_on": [("camvid:some where", ["--calib-data", "camvid:some where"])],
    "calib_split": [("val", ["--calib-split", "val"])],
    "calib_images": [(0, ["--calib-images", "0"]), (-1, ["--calib-images", "-1"])],
    "calibration": [("ranges.json", ["--calibration", "ranges.json"])],
    "smooth": [
        (0.5, ["--smooth", "0.5"]),
        (1, ["--smooth", "1"]),
        ("search", ["--smooth", "search"]),
        ("none", ["--smooth", "none"]),
        (2.0, ["--smooth", "2"]),
    ],
    "bias_correction": [(True, ["--bias-correction"])],
    "observers": [(["entropy"], ["--observer", "entropy"]), ("mean", ["--observer", "mean"])],
    "percentile": [(99.9, ["--percentile", "99.9"]), (20, ["--percentile", "20"])],
    "bins": [(2048, ["--bins", "2048"]), (1000, ["--bins", "1000"])],
    "minimum": [(3, ["--minimum", "3"]), (0, ["--minimum", "0"])],
    "fit": [("letterbox", ["--fit", "letterbox"]), ("crop", ["--fit", "crop"])],
    "gate_on": [("ade20k:there", ["--gate-data", "ade20k:there"])],
    "gate_split": [("test", ["--gate-split", "test"])],
    "gate_limit": [(50, ["--gate-limit", "50"]), (0, ["--gate-limit", "0"])],
    "pack": [("x.pack", ["--pack", "x.pack"]), ("no/x.pack", ["--pack", "no/x.pack"])],
    "max_drop": [(0.75, ["--max-drop", "0.75"]), (1, ["--max-drop", "1"]), (-1.0, ["--max-drop=-1"])],
    "min_images": [(8, ["--min-images", "8"])],
    "accept_reference": [(True, ["--accept-reference"])],
    "min_agreement": [(0.98, ["--min-agreement", "0.98"])],
    "no_gate": [(True, ["--no-gate"])],
    "fallback": [(False, ["--no-fallback"])],
    "max_evaluations": [(5, ["--max-evaluations", "5"]), (0, ["--max-evaluations", "0"])],
    "threads": [(2, ["--threads", "2"])],
}
USUAL = {"model", "out", "seeded"}  # without these a request fails for want of them, whatever else it says


@pytest.fixture(autouse=True)
def compilers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compilers of both flavours, and a GPU that both build for."""
    install_compilers(monkeypatch)
    install_driver(monkeypatch, Device("NVIDIA RTX A2000", "sm_86"))
    yield


@st.composite
def requests(draw: st.DrawFn) -> tuple[dict[str, Any], list[str]]:
    """A request as Python's keywords, and as words in any order."""
    rare = draw(st.sets(st.sampled_from(sorted(set(SAID) - USUAL)), max_size=8))
    names = rare | (USUAL if draw(st.integers(0, 9)) else draw(st.sets(st.sampled_from(sorted(USUAL)))))
    said = {name: draw(st.sampled_from(SAID[name])) for name in names}
    if draw(st.booleans()):  # INT8 as it is usually asked for, so that more of them get through
        for name in ("precision", "calibrate_on", "gate_on"):
            said[name] = next(each for each in SAID[name] if name != "precision" or each[0] == "int8")
    if draw(st.booleans()):  # and the CPU, which half of the users build for
        said["targets"] = next(each for each in SAID["targets"] if each[0] == "cpu")
    order = draw(st.permutations(sorted(said)))
    words = [word for name in order for word in said[name][1]]
    return {name: value for name, (value, _) in said.items()}, words


def from_python(asked: dict[str, Any]) -> Any:
    try:
        return resolve(BuildRequest(**asked))
    except TwinsError as error:
        return type(error), error.cause


def from_command_line(words: list[str]) -> Any:
    parser = Parser()
    FLAGS.add_to(parser)
    with on_command_line(FLAGS):
        try:
            return resolve(FLAGS.read(parser.parse_args(words)))
        except TwinsError as error:
            said = str(error)
            for flag in TABLE:
                if "_" in flag.field or flag.field == "observers":  # the others are words of English, too
                    assert not re.search(rf"\b{flag.field}\b", said), said
            return type(error), as_python(error.cause)


def as_python(text: str) -> str:
    """An error's text with each flag replaced by its name in Python."""
    for flag in sorted(TABLE, key=lambda flag: -len(flag.option)):
        if flag.sets is True:
            text = re.sub(rf"{flag.option}(?![\w-])(?! (?:is|applies|needs)\b)", f"{flag.field}=True", text)
        text = re.sub(rf"{flag.option}(?![\w-])", flag.field, text)
    return text


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests())
def test_python_and_the_command_line_get_one_answer(request_: tuple[dict[str, Any], list[str]]) -> None:
    asked, words = request_
    assert from_python(asked) == from_command_line(words)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests())
def test_the_rebuild_command_of_a_job_gives_the_job_again(request_: tuple[dict[str, Any], list[str]]) -> None:
    try:
        job = resolve(BuildRequest(**request_[0], **{} if "targets" in request_[0] else {"targets": "cpu"}))
    except TwinsError:
        return  # what cannot be built has no such command
    words = FLAGS.words(job.request)
    parser = Parser()
    FLAGS.add_to(parser)
    again = resolve(FLAGS.read(parser.parse_args(words)))
    assert again == job and again.rebuild == job.rebuild


def test_every_field_is_generated_and_has_one_flag() -> None:
    names = [field.name for field in fields(BuildRequest)]
    assert sorted(SAID) == sorted(names) == sorted(flag.field for flag in TABLE)
    assert len({flag.option for flag in TABLE}) == len(TABLE)
    assert {field.name for field in fields(BuildDefaults)} <= set(names)


def test_a_request_says_nothing_until_something_is_said() -> None:
    assert BuildRequest().given() == {}
    assert all(field.default is None for field in fields(BuildRequest))


def test_errors_speak_the_callers_language() -> None:
    asked = BuildRequest("twins_svt-s_fpn", "x.bundle", seeded=True, targets=("cpu",), precision="int8")
    with pytest.raises(UsageError) as raised:
        resolve(asked)
    assert 'gate_on="KIND:PATH"' in str(raised.value.fix) and "--" not in str(raised.value)
    with on_command_line(FLAGS), pytest.raises(UsageError) as raised:
        resolve(asked)
    assert "--gate-data KIND:PATH" in str(raised.value.fix) and "gate_on" not in str(raised.value)
    with pytest.raises(UsageError, match="threads: '4' is no whole number"):
        BuildRequest(threads="4")  # type: ignore[arg-type]


def test_what_is_said_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="size is given twice"):
        FLAGS.ask(BuildRequest(size=(64, 64)), size=(64, 64))
    asked = FLAGS.ask(BuildRequest(opset=18), size="64x96", targets=None)
    assert asked.given() == {"size": (64, 96), "opset": 18}


def test_help_says_the_defaults_of_the_table() -> None:
    for name, shown in (
        ("calib_images", "default: 64, 0: all"),
        ("min_images", "default: 30"),
        ("batch", "default: 1"),
    ):
        flag = FLAGS.of(name)
        assert flag is not None and shown in FLAGS.help_of(flag)
    assert FLAGS.default_of("observers") == DEFAULTS.observers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("targets", 86),
        ("outputs", 3),
        ("observers", 5),
        ("test_scale", 5),
        ("size", b"64x96"),
        ("size", (360.0, 480)),
        ("batch", 2.0),
        ("smooth", True),
        ("threads", True),
        ("seeded", 1),
        ("max_drop", "0.5"),
        ("out", 3),
        ("checkpoint", "a\0b"),
    ],
)
def test_a_value_of_another_kind_is_a_usage_error_that_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{field}"):
        BuildRequest(**{field: value})


def test_values_may_be_of_numpy_and_pathlib() -> None:
    asked = BuildRequest(
        out=Path("x.bundle"),  # type: ignore[arg-type]
        size=np.array([64, 96]),  # type: ignore[arg-type]
        threads=np.int64(2),  # type: ignore[arg-type]
        targets=["86"],  # type: ignore[arg-type]
    )
    assert (asked.out, asked.size, asked.threads, asked.targets) == ("x.bundle", (64, 96), 2, ("86",))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"out": "."}, "is not a name for a bundle"),
        ({"padding": "none"}, "padding must be one of parity, masked, unmasked, not 'none'"),
        ({"num_classes": 999}, "num_classes must be 1 to 255"),
        ({"precision": ""}, "precision cannot be ''"),
        ({"flavour": ()}, "flavour names none"),
        ({"threads": 0}, "threads is 0"),
        ({"precision": "fp16", "gate_on": "folder:x", "max_drop": float("nan")}, "a drop of nan points"),
        ({"precision": "fp16", "gate_on": "folder:x", "max_drop": float("inf")}, "a drop of inf points"),
        ({"precision": "fp16", "gate_on": "folder:x", "fallback": False}, "fallback applies only to INT8 builds"),
    ],
)
def test_what_cannot_be_shows_before_any_work(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(BuildRequest(**{"model": "twins_svt-demo_fpn", "out": "x.bundle", **asked}))


def test_more_must_be_a_request() -> None:
    with pytest.raises(UsageError, match="give a BuildRequest"):
        FLAGS.ask({"opset": 18}, size=64)  # type: ignore[arg-type]
