"""A request and its options: the same from Python and from a command line, errors too."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Options, assert_same, log_rows, stop_after, weights

from twins_trt.cli import train as command
from twins_trt.cli.parsing import new_parser
from twins_trt.errors import CheckpointError, UsageError
from twins_trt.training import TrainOptions, TrainRequest, load_options, resolve_options, resolve_training, train
from twins_trt.verbs.command_line import on_command_line
from twins_trt.verbs.train import ADE20K_SCALE, CHANGEABLE, FLAGS, TABLE, TrainDefaults, resume_request

NAMES = tuple(field.name for field in dataclasses.fields(TrainRequest))


def read(words: list[str]) -> TrainRequest:
    """The request of a command line."""
    parser = new_parser("twins-trt train", summary="", example="")
    command.configure(parser)
    return FLAGS.read(parser.parse_args(words))


def has_default(field: dataclasses.Field[Any]) -> bool:
    return (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)


# --- the two types -------------------------------------------------------------------------------------------------


def test_every_field_is_asked_by_one_flag_and_answered_once() -> None:
    assert sorted(flag.field for flag in TABLE) == sorted(NAMES)
    answered = dataclasses.fields(TrainOptions)
    assert tuple(field.name for field in answered) == NAMES
    added = ("binary", "weights", "conventions")  # folders of earlier versions have none of them
    assert [field.name for field in answered if has_default(field)] == list(added)
    assert {field.name for field in dataclasses.fields(TrainDefaults)} < set(NAMES)
    assert TrainRequest().given() == {}


def test_a_value_may_be_its_text() -> None:
    request = TrainRequest(out=Path("runs") / "x", crop="64x96", scale="512x2048", ratios="0.5:2", lr=1)  # type: ignore[arg-type]
    assert (request.out, request.crop, request.scale) == (str(Path("runs") / "x"), (64, 96), (2048, 512))
    assert (request.ratios, request.lr, type(request.lr)) == ((0.5, 2.0), 1.0, float)
    with pytest.raises(UsageError, match="batch: True is no whole number"):
        TrainRequest(batch=True)
    with pytest.raises(UsageError, match="ratios: '1' are not two ratios"):
        TrainRequest(ratios="1")  # type: ignore[arg-type]


def test_an_image_may_keep_its_own_size_on_any_data() -> None:
    ade = TrainRequest("twins_svt-s_fpn", "ade20k:x", "run")
    assert resolve_options(ade).scale == (2048, 512) == ADE20K_SCALE
    assert resolve_options(dataclasses.replace(ade, scale="none")).scale is None


# --- from Python and from a command line ---------------------------------------------------------------------------

COUNTS = st.integers(-1, 3000)
SHARES = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(-2, 2)
RATES = st.floats(-1, 1) | st.sampled_from([float("nan"), float("inf"), 6e-5])
# argparse swallows "--" wherever it stands.
# No path holds a NUL.
TEXTS = (st.sampled_from(["-", "-x", "--lr=2", "a=b"]) | st.text(max_size=8)).filter(
    lambda text: text != "--" and "\0" not in text
)
WORDS: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["twins_svt-s_fpn", "twins_pcpvt-l_upernet", "twins_svt-xl_fpn"]),
    "data": st.sampled_from(["camvid:x y", "ade20k:-x"]) | TEXTS,
    "crop": st.tuples(st.integers(0, 8192), st.integers(24, 64)),
    "scale": st.just("none") | st.tuples(st.integers(512, 4096), st.integers(1, 512)),
    "ratios": st.tuples(RATES, RATES),
    "amp": st.sampled_from(["off", "bf16", "fp16", "fp8"]),
    "decay": st.sampled_from(["weights", "mmseg", "none"]),
    "device": st.sampled_from(["auto", "cpu", "cuda", "tpu"]),
    "padding": st.sampled_from(["parity", "masked", "unmasked", ""]),
    "weights": st.sampled_from(["auto", "ema", "raw", "mean"]),
    "conventions": st.sampled_from([{"mean": "0,0,0", "channels": "bgr"}, {"threshold": "0.5"}]),
    **dict.fromkeys(("scratch", "distort", "checkpointing", "binary"), st.booleans()),
    **dict.fromkeys(("iterations", "batch", "warmup", "validate_every", "save_every", "val_limit"), COUNTS),
    **dict.fromkeys(("log_every", "seed", "workers", "threads"), COUNTS),
    **dict.fromkeys(("cat_max_ratio", "flip", "drop_path", "dropout", "ema"), SHARES),
    **dict.fromkeys(("lr", "weight_decay", "power", "min_lr", "clip_norm", "aux_weight"), RATES),
    **dict.fromkeys(("out", "checkpoint", "split", "val_split", "plan", "calibration"), TEXTS),
}
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["twins_svt-s_fpn", "twins_pcpvt-l_upernet"]),
    "crop": st.tuples(st.integers(32, 8192), st.integers(32, 64)),
    "ratios": st.tuples(st.floats(0.1, 1), st.floats(1, 8)),
    "amp": st.sampled_from(["off", "bf16", "fp16"]),
    "decay": st.sampled_from(["weights", "mmseg"]),
    "device": st.sampled_from(["auto", "cpu", "cuda"]),
    "padding": st.sampled_from(["parity", "masked", "unmasked"]),
    "weights": st.sampled_from(["auto", "ema", "raw"]),
    **{name: st.integers(2, 3000) for name in NAMES if WORDS[name] is COUNTS},
    **{name: st.floats(0, 1, exclude_max=True) for name in NAMES if WORDS[name] is SHARES},
    **{name: st.floats(0, 1e6, exclude_min=True) for name in NAMES if WORDS[name] is RATES},
}
STARTS = st.sampled_from(
    [{}, {"scratch": True}, {"checkpoint": "a b.pth"}, {"plan": "p.json"}, {"plan": "-p", "calibration": "r.json"}]
)


def requests(values: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    needed = {name: values[name] for name in ("model", "data", "out")}
    return st.fixed_dictionaries(needed, optional={name: values[name] for name in NAMES if name not in needed})


def resolved(request: TrainRequest) -> TrainOptions | str:
    """The options of a request, or the cause of its error."""
    try:
        return resolve_options(request)
    except (CheckpointError, UsageError) as error:
        return error.cause


def named_by_field(cause: object) -> object:
    if not isinstance(cause, str):
        return cause
    for flag in sorted(TABLE, key=lambda flag: -len(flag.option)):
        cause = cause.replace(flag.option, flag.field)
    return cause


def same_from_both(request: TrainRequest) -> TrainOptions | str:
    ours = resolved(request)
    with on_command_line(FLAGS):
        theirs = resolved(read(FLAGS.words(request)))
    assert named_by_field(theirs) == named_by_field(ours)  # texts may look like flags
    return ours


@settings(max_examples=200, deadline=None)
@given(requests({**WORDS, **GOOD}), STARTS)
def test_a_command_line_resolves_as_its_request_does(fields: dict[str, Any], start: dict[str, Any]) -> None:
    for name in ("scratch", "checkpoint", "plan", "calibration"):
        fields.pop(name, None)
    options = same_from_both(TrainRequest(**fields, **start))
    assert isinstance(options, TrainOptions)
    if fields.get("scale") == "none":
        fields["scale"] = None
    assert {name: getattr(options, name) for name in fields} == fields
    assert TrainOptions.from_json(options.to_json()) == options  # which checks every field's type


@settings(max_examples=200, deadline=None)
@given(requests(WORDS) | st.fixed_dictionaries({}, optional=WORDS))
def test_what_cannot_be_is_refused_alike(fields: dict[str, Any]) -> None:
    request = TrainRequest(**fields)
    assert TrainRequest.from_json(json.loads(json.dumps(request.to_json()))).given().keys() == fields.keys()
    same_from_both(request)


@pytest.mark.parametrize(
    ("fields", "here", "there"),
    [
        ({"model": None}, ("model is missing", 'model="NAME"'), ("MODEL is missing", "MODEL")),
        ({"out": None}, ("out is missing", 'out="DIR"'), ("--out is missing", "--out DIR")),
        ({"power": 0.0}, ("power is 0.0", "more than 0"), ("--lr-power is 0.0", "more than 0")),
        ({"calibration": "r"}, ("precision plan", 'plan="FILE"'), ("precision plan", "--plan FILE")),
        ({"crop": (16, 64)}, ("a crop of 16x64", "give crop"), ("a crop of 16x64", "give --crop")),
        ({"checkpoint": "x", "scratch": True}, ("exclude", "or scratch"), ("exclude", "or --scratch")),
        (
            {"model": "twins_svt-s_upernet", "batch": 1},
            ("one picture is none", "batch=2 or more"),
            ("one picture is none", "--batch 2 or more"),
        ),
    ],
)
def test_errors_speak_the_callers_language(
    fields: dict[str, Any], here: tuple[str, str], there: tuple[str, str]
) -> None:
    request = TrainRequest(**{"model": "twins_svt-s_fpn", "data": "camvid:x", "out": "run", **fields})
    with pytest.raises(UsageError) as raised:
        resolve_options(request)
    assert here[0] in raised.value.cause and here[1] in str(raised.value.fix)
    with on_command_line(FLAGS), pytest.raises(UsageError) as raised:
        resolve_options(request)
    assert there[0] in raised.value.cause and there[1] in str(raised.value.fix)


def test_the_verb_loads_nothing_heavy() -> None:
    code = "import sys, twins_trt.verbs.train; print({'torch', 'numpy', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


# --- going on ------------------------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_the_options_that_the_request_leaves_out(options: Options, tmp_path: Path) -> None:
    whole = options(out=str(tmp_path / "whole"), distort=False)
    train(whole)
    broken = dataclasses.replace(whole, out=str(tmp_path / "broken"))
    with pytest.raises(KeyboardInterrupt):
        train(broken, observe=stop_after(2))
    rest = TrainRequest(out=broken.out, log_every=3)
    job = resolve_training(rest, resume=True)
    assert (job.start, job.options) == ("resumed", dataclasses.replace(resolve_options(broken), log_every=3))
    assert train(rest, resume=True).resumed == 2
    assert log_rows(tmp_path / "broken") == log_rows(tmp_path / "whole")
    assert load_options(tmp_path / "broken").log_every == 3
    with pytest.raises(UsageError, match="batch is 0"):
        resolve_training(TrainRequest(out=broken.out, batch=0), resume=True)
    with pytest.raises(UsageError, match="out is missing"):
        resolve_training(TrainRequest(), resume=True)


def test_what_may_change_when_a_run_is_resumed() -> None:
    free = TrainRequest(device="cpu", workers=1, threads=1, save_every=2, log_every=3)
    assert set(free.given()) == set(CHANGEABLE)
    assert resume_request(free, "run") == dataclasses.replace(free, out="run")
    for fixed in (TrainRequest(lr=0.1), TrainRequest(out="other"), TrainRequest(model="twins_svt-s_fpn")):
        with pytest.raises(UsageError, match=r"own options, (lr|out|model) among them"):
            resume_request(fixed, "run")
    with on_command_line(FLAGS), pytest.raises(UsageError, match="own options, --lr among them"):
        resume_request(TrainRequest(lr=0.1), "run")


SAVED_EARLIER = """
{"model": "MODEL", "data": "DATA", "out": "OUT", "checkpoint": null, "scratch": true, "split": "train",
"val_split": "val", "iterations": 4, "batch": 2, "crop": [64, 64], "scale": null, "ratios": [0.5, 2.0],
"cat_max_ratio": 0.75, "flip": 0.5, "distort": true, "lr": 0.001, "weight_decay": 0.0001, "power": 0.9, "warmup": 1,
"min_lr": 0.0, "decay": "weights", "clip_norm": null, "aux_weight": 0.4, "drop_path": 0.2, "dropout": 0.1,
"amp": "off", "checkpointing": false, "ema": null, "validate_every": 100, "save_every": 1, "val_limit": null,
"log_every": 50, "seed": 0, "workers": 0, "threads": 1, "device": "auto", "padding": "parity", "plan": null,
"calibration": null}
"""


def test_a_folder_of_an_earlier_version_is_resumed(options: Options, tmp_path: Path) -> None:
    """There one type held both the request and the options, and none the conventions."""
    whole = options(out=str(tmp_path / "whole"))
    train(whole)
    request = options()
    with pytest.raises(KeyboardInterrupt):
        train(request, observe=stop_after(2))
    saved = Path(str(request.out)) / "options.json"
    text = SAVED_EARLIER.replace("MODEL", str(request.model)).replace("DATA", str(request.data))
    earlier, now = json.loads(text.replace("OUT", str(request.out))), json.loads(saved.read_text())
    assert now == {**earlier, "binary": False, "weights": "auto", "conventions": {}}
    saved.write_text(json.dumps(earlier))
    (saved.parent / "model.json").unlink()
    assert train(TrainRequest(out=request.out), resume=True).iterations == 4
    assert log_rows(str(request.out)) == log_rows(str(whole.out))
    assert_same(weights(saved.parent / "last.pth"), weights(Path(str(whole.out)) / "last.pth"))
