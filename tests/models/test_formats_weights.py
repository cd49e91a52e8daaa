"""Where a file keeps its weights, and which of two sets is taken: as each project's training writes them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoints import save
from twins_trt.errors import CheckpointError, UsageError
from twins_trt.models.checkpoint import read_file
from twins_trt.models.unwrap import Unwrapped, unwrap
from twins_trt.verbs.command_line import on_command_line
from twins_trt.verbs.convert import FLAGS

NAMES = ("backbone.patch_embeds.0.proj.weight", "decode_head.conv_seg.weight", "decode_head.bn.running_mean")
PARAMETERS = NAMES[:2]


def filled(value: float, names: tuple[str, ...] = NAMES, *, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: torch.full((2,), value) for name in names}


RAW, EMA = filled(1), filled(2)


def values(found: Unwrapped) -> set[float]:
    return {float(tensor[0]) for tensor in found.weights.values()}


WRAPPERS: dict[str, Any] = {
    "a state dict": RAW,
    "mmsegmentation": {"state_dict": RAW, "meta": {"CLASSES": ("a",)}, "optimizer": {"state": {}}},
    "official": {"model": RAW, "optimizer": {}, "epoch": 3},
    "a tutorial": {"epoch": 3, "model_state_dict": RAW, "optimizer_state_dict": {}, "loss": 0.3},
    "DeepSpeed": {"module": RAW, "global_steps": 7},
    "a wrapper within a wrapper": {"model": {"state_dict": RAW}},
    "the name of a model beside it": {"model": "twins", "state_dict": RAW},
    "a configuration beside it": {"model": {"type": "SVT"}, "state_dict": RAW},
    "an unknown name": {"segmentor_weights": RAW, "step": 3},
}


@pytest.mark.parametrize("case", WRAPPERS)
def test_wrappers(case: str) -> None:
    found = unwrap(WRAPPERS[case], "x.pth")
    assert set(found.weights) == set(NAMES) and values(found) == {1.0}
    assert found.taken == ""
    assert found.meta == ({"CLASSES": ("a",)} if case == "mmsegmentation" else {})
    assert unwrap(WRAPPERS[case], "x.pth", weights="raw").weights == found.weights
    with pytest.raises(CheckpointError, match=r"x\.pth holds no averaged \(EMA\) weights") as raised:
        unwrap(WRAPPERS[case], "x.pth", weights="ema")
    assert raised.value.fix == 'leave out weights="ema"'


def with_buffers(parameters: float, buffers: float, *, prefix: str = "", config: str = "") -> dict[str, Any]:
    """As mmcv's EMAHook registers them: on the model, for parameters and not for running statistics."""
    averages = {f"{prefix}ema_{name.replace('.', '_')}": torch.full((2,), buffers) for name in PARAMETERS}
    return {"state_dict": {**filled(parameters, prefix=prefix), **averages}, "meta": {"config": config}}


EPOCHS = "optimizer = dict(type='AdamW')\nrunner = dict(type='EpochBasedRunner', max_epochs=9)\n"
ITERATIONS = "runner = dict(type='IterBasedRunner', max_iters=80000)\n"
STEPS = {"steps": torch.tensor(7)}

# (content, what `auto` takes). In every one the raw weights are 1 and the averages 2.
TWO_SETS: dict[str, tuple[Any, str]] = {
    "mmengine swaps them when it saves": (
        {"state_dict": EMA, "ema_state_dict": filled(1, prefix="module.") | STEPS},
        "ema",
    ),
    "mmcv, iterations": (with_buffers(1, 2, config=ITERATIONS), "raw"),
    "mmcv, no configuration": (with_buffers(1, 2), "raw"),
    "mmcv, DataParallel": (with_buffers(1, 2, prefix="module."), "raw"),
    "mmcv, epochs: swaps them when one ends": (with_buffers(2, 1, config=EPOCHS), "ema"),
    "timm": ({"state_dict": RAW, "state_dict_ema": EMA, "arch": "twins_svt_small", "metric": 80.1}, "raw"),
    "SSSegmentation": ({"model": RAW, "model_ema": EMA, "cur_epoch": 3}, "raw"),
    "own loop": ({"model_state_dict": RAW, "ema_state_dict": EMA}, "raw"),
    "own loop, DataParallel": ({"model_state_dict": RAW, "ema_state_dict": filled(2, prefix="module.")}, "raw"),
    "torch's AveragedModel": (
        {"model": RAW, "ema": filled(2, prefix="module.") | {"n_averaged": torch.tensor(9)}},
        "raw",
    ),
    "averages with their decay": ({"model": RAW, "ema": {"decay": 0.999, "shadow": EMA}}, "raw"),
    "Lightning": ({"state_dict": filled(1, prefix="model.") | filled(2, prefix="model_ema.module.")}, "raw"),
}


@pytest.mark.parametrize("case", TWO_SETS)
@pytest.mark.parametrize("weights", ["auto", "ema", "raw"])
def test_two_sets_of_weights(case: str, weights: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="twins_trt")
    content, tested = TWO_SETS[case]
    found = unwrap(content, "x.pth", weights=weights)
    assert found.taken == (tested if weights == "auto" else weights)
    expected = {"raw": 1.0, "ema": 2.0}[found.taken]
    assert {name.rsplit("backbone.")[-1].rsplit("decode_head.")[-1] for name in found.weights} == {
        name.partition(".")[2] for name in NAMES
    }
    shared = {name for name in found.weights if name.endswith("running_mean")} if "mmcv" in case else set()
    assert {float(value[0]) for name, value in found.weights.items() if name not in shared} == {expected}
    (record,) = caplog.records
    took, others = ("averaged", "raw") if found.taken == "ema" else ("raw", "ema")
    assert record.getMessage() == (
        f'x.pth holds raw and averaged (EMA) weights; takes the {took} ones. For the others: weights="{others}"'
    )


def test_running_statistics_that_are_not_averaged_come_from_the_raw_weights() -> None:
    found = unwrap({"model": RAW, "model_ema": filled(2, PARAMETERS)}, "x.pth", weights="ema")
    assert {name: float(value[0]) for name, value in found.weights.items()} == dict(zip(NAMES, (2, 2, 1), strict=True))


def test_averages_alone_are_taken_and_are_not_raw() -> None:
    found = unwrap({"ema_state_dict": filled(2, prefix="module.")}, "x.pth")
    assert (found.taken, values(found)) == ("ema", {2.0})
    with pytest.raises(CheckpointError, match=r"x\.pth holds averaged \(EMA\) weights alone"):
        unwrap({"ema_state_dict": EMA}, "x.pth", weights="raw")


def test_names_that_only_look_like_averages_are_weights() -> None:
    state = RAW | {"ema_head.weight": torch.zeros(2), "ema_bn_mean": torch.zeros(2)}
    found = unwrap({"state_dict": state}, "x.pth")
    assert (found.taken, set(found.weights)) == ("", set(state))


def test_an_unknown_choice_is_refused_in_the_callers_words() -> None:
    with pytest.raises(UsageError, match="weights must be one of auto, ema, raw, not 'both'"):
        unwrap(RAW, "x.pth", weights="both")
    with on_command_line(FLAGS), pytest.raises(CheckpointError) as raised:
        unwrap(RAW, "x.pth", weights="ema")
    assert raised.value.fix == "leave out --weights ema"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ([1], "holds a list, not weights by name"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"state_dict": {"a": torch.zeros(1), "b\n": "text"}}, r"holds no state dict: b\? is not a tensor"),
        ({"epoch": 3, "optimizer": {"state": {}}}, "holds no state dict: epoch is not a tensor"),
        ({"model": {"type": "SVT"}}, "holds no state dict: type is not a tensor"),
    ],
)
def test_content_without_weights_is_refused(content: object, cause: str) -> None:
    with pytest.raises(CheckpointError, match=cause):
        unwrap(content, "x.pth")


def test_a_file_tells_which_weights_were_taken(tmp_path: Path) -> None:
    path = save(TWO_SETS["mmengine swaps them when it saves"][0], tmp_path / "x.pth")
    found = read_file(path, weights="raw")
    assert found.taken == "raw" and {float(value[0]) for value in found.weights.values()} == {1.0}
