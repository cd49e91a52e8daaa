"""Which checkpoints fit a model, and which do not: `examine` decides it, and loading follows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import CLASSES, PALETTE, save, weights
from torch import Tensor

from twins_trt.errors import CheckpointError, UsageError
from twins_trt.models import build_model, get_spec, list_models
from twins_trt.models.examine import Examined, examine, expected_tensors
from twins_trt.models.read_conventions import write_conventions
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.weights import find_model
from twins_trt.models.widths import read_spec
from twins_trt.verbs.build import FLAGS
from twins_trt.verbs.command_line import on_command_line

DEMO = "twins_svt-demo_fpn"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def demo() -> Segmentor:
    model = build_model(DEMO, 3)
    seed_weights(model)
    return model


@pytest.fixture(scope="module")
def upernet() -> Segmentor:
    model = build_model("twins_svt-s_upernet", 3)
    seed_weights(model)
    return model


def file_of(state: State, path: Path, **meta: object) -> Path:
    return save({"state_dict": state, "meta": meta}, path)


def without(key: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if not k.startswith(key)}


NORM = "backbone.layers.2.1.norm1"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (without(f"{NORM}.bias"), rf"does not fit {DEMO}: 1 missing \({NORM}\.bias\)"),
        (without("backbone.position_encodings"), r"8 missing \(backbone\.position_encodings.*, \.\.\.\)"),
        (without("backbone.norm_list.3"), r"2 missing \(backbone\.norm_list"),
        (without("decode_head.scale_heads.1.0.bn.running_var"), r"1 missing \(decode_head.*running_var\)"),
        (lambda s: {**s, f"{NORM}.bias": torch.zeros(3)}, rf"1 wrongly shaped \({NORM}\.bias 3 for 96\)"),
        (lambda s: {**without(f"{NORM}.bias")(s), f"{NORM}.weight": torch.zeros(2)}, "1 missing .*; 1 wrongly shaped"),
        (lambda s: {**s, f"{NORM}.bias": torch.full((96,), float("nan"))}, rf"NaN .* 1 tensors \({NORM}"),
        (without("backbone.layers.2.0."), r"lacks blocks of stage 3: it has \[1\]"),
        (without("backbone.layers.3."), "has 3 stages of blocks, not 4"),
        (without("decode_head.conv_seg.weight"), r"1 missing \(decode_head\.conv_seg\.weight\)"),
    ],
)
def test_every_tensor_that_inference_uses_must_fit(
    tmp_path: Path, demo: Segmentor, change: Callable[[State], State], cause: str
) -> None:
    path = file_of(change(demo.state_dict()), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=cause) as raised:
        examine(path)
    assert raised.value.fix
    with pytest.raises(CheckpointError) as again:
        find_model(None, checkpoint=path)
    with pytest.raises(CheckpointError) as built:
        build_model(checkpoint=path)
    assert str(again.value) == str(built.value) == str(raised.value)


@pytest.mark.parametrize(
    ("change", "ignored"),
    [
        (lambda s: {**s, "ema_backbone_norm": torch.zeros(3)}, ("ema_backbone_norm",)),
        (lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")}, ()),
        (lambda s: {**s, "x": torch.tensor(float("nan"))}, ("x",)),
        (
            lambda s: {**s, "auxiliary_head.conv_seg.weight": torch.zeros(9, 4, 1, 1)},
            ("auxiliary_head.conv_seg.weight",),
        ),
        (
            lambda s: {**s, "auxiliary_head.0.conv_seg.bias": torch.zeros(9), "auxiliary_head.1.x": torch.zeros(9)},
            ("auxiliary_head.0.conv_seg.bias", "auxiliary_head.1.x"),
        ),
    ],
)
def test_what_inference_does_not_use_may_be_there_or_not(
    tmp_path: Path, demo: Segmentor, caplog: pytest.LogCaptureFixture, change: Callable, ignored: tuple[str, ...]
) -> None:
    with caplog.at_level(logging.INFO, logger="twins_trt"):
        found = examine(file_of(change(demo.state_dict()), tmp_path / "x.pth"))
    assert found.ignored == ignored
    said = [record for record in caplog.records if "ignored" in record.message]
    assert len(said) == (1 if ignored else 0)
    assert all(f"{len(ignored)} tensors" in record.message and ignored[0] in record.message for record in said)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(found.build()(x), demo(x))


@pytest.mark.parametrize("aux", ["absent", "of other classes", "of two convolutions", "incomplete", "fitting"])
def test_an_auxiliary_head_is_taken_where_it_fits(tmp_path: Path, upernet: Segmentor, aux: str) -> None:
    state = dict(upernet.state_dict())
    head = {key: value for key, value in state.items() if key.startswith("auxiliary_head.")}
    changed = {
        "absent": {},
        "of other classes": {**head, "auxiliary_head.conv_seg.weight": torch.zeros(7, 256, 1, 1)},
        "of two convolutions": {**head, "auxiliary_head.convs.1.conv.weight": torch.zeros(256, 256, 3, 3)},
        "incomplete": {k: v for k, v in head.items() if "running_mean" not in k},
        "fitting": head,
    }[aux]
    state = {key: value for key, value in state.items() if key not in head} | changed
    found = examine(file_of(state, tmp_path / "x.pth"))
    taken = {key for key in found.state_dict if key.startswith("auxiliary_head.")}
    assert taken == (set(head) if aux in ("fitting", "of two convolutions") else set())
    assert set(found.ignored) == set(changed) - taken
    key = "decode_head.bottleneck.conv.weight"
    assert torch.equal(found.build().state_dict()[key], upernet.state_dict()[key])


def test_a_model_of_the_zoo_loads_every_bit(tmp_path: Path, upernet: Segmentor) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in upernet.state_dict().items()}
    path = save({"state_dict": half, "meta": {"CLASSES": CLASSES, "PALETTE": PALETTE}}, tmp_path / "x.pth")
    model = build_model("twins_svt-s_upernet", 3, path)
    assert all(torch.equal(value, half[key].to(value.dtype)) for key, value in model.state_dict().items())
    assert model.conventions.classes == tuple(CLASSES) and not model.training


def test_another_number_of_classes_is_named(tmp_path: Path, demo: Segmentor) -> None:
    path = file_of(demo.state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="trained on 3 classes, the model was asked for 150") as raised:
        build_model(DEMO, 150, path)
    assert raised.value.fix == "num_classes=3"
    with on_command_line(FLAGS), pytest.raises(CheckpointError) as raised:
        build_model(DEMO, 150, path)
    assert raised.value.fix == "--num-classes 3"


@pytest.mark.parametrize("name", ["twins_svt-s_upernet", "twins_pcpvt-s_fpn"])
def test_another_model_is_named(tmp_path: Path, demo: Segmentor, name: str) -> None:
    path = file_of(demo.state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"holds {DEMO} with 3 classes, not {name}") as raised:
        build_model(name, 3, path)
    assert raised.value.fix == f"use {DEMO}, or leave the name out"
    with pytest.raises(UsageError, match="no model called 'twins_svt-x_fpn'"):
        build_model("twins_svt-x_fpn", 3, path)


def test_class_names_of_another_count_are_dropped(tmp_path: Path, demo: Segmentor) -> None:
    path = file_of(demo.state_dict(), tmp_path / "x.pth", CLASSES=[*CLASSES, "car"], PALETTE=PALETTE)
    told = examine(path).conventions
    assert told.classes is None and told.palette == tuple(tuple(colour) for colour in PALETTE)


def test_more_classes_than_a_mask_holds_are_refused(tmp_path: Path, demo: Segmentor) -> None:
    state = dict(demo.state_dict())
    state["decode_head.conv_seg.weight"] = state["decode_head.conv_seg.weight"].repeat(100, 1, 1, 1)
    state["decode_head.conv_seg.bias"] = state["decode_head.conv_seg.bias"].repeat(100)
    path = file_of(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="has 300 classes: masks are uint8, which holds 255"):
        examine(path)
    assert examine(path, any_classes=True).num_classes == 300  # training replaces the classifier


def test_a_backbone_alone_and_foreign_weights_are_explained(tmp_path: Path, demo: Segmentor) -> None:
    backbone = {key: value for key, value in demo.state_dict().items() if key.startswith("backbone.")}
    with pytest.raises(CheckpointError, match="the backbone twins_svt-demo without a head") as raised:
        examine(save(backbone, tmp_path / "x.pth"))
    assert f"twins-trt train twins_svt-demo_fpn --checkpoint {tmp_path / 'x.pth'}" in (raised.value.fix or "")
    with pytest.raises(CheckpointError, match="no Twins"):
        examine(save(weights(), tmp_path / "y.pth"))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda own: own["spec"].update(num_heads=5), "written by another version"),
        (lambda own: own["spec"].update(window_size="7"), "written by another version"),
        (lambda own: own["conventions"].update(ignore_index=None), "written by another version"),
        (lambda own: own.pop("spec"), "written by another version"),
        (lambda own: own["conventions"].update(threshold=0.5), "has 3 logits, which its threshold 0.5 contradicts"),
        (lambda own: own["spec"].update(num_heads=[3, 2, 3, 4]), r"3/2/3/4 heads do not divide"),
    ],
)
def test_what_our_own_files_say_is_checked(
    tmp_path: Path, demo: Segmentor, change: Callable[[dict], object], cause: str
) -> None:
    own = write_conventions(demo.conventions, demo.spec)
    assert examine(file_of(demo.state_dict(), tmp_path / "x.pth", twins_trt=own)).spec == demo.spec
    change(own)
    with pytest.raises(CheckpointError, match=cause):
        examine(file_of(demo.state_dict(), tmp_path / "y.pth", twins_trt=own))


def test_heads_of_a_flag_have_to_divide_the_channels(tmp_path: Path, demo: Segmentor) -> None:
    path = file_of(demo.state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="32/64/96/128 channels, which its 3/2/3/4 heads do not divide"):
        examine(path, conventions={"num_heads": "3,2,3,4"})
    assert examine(path, conventions={"num_heads": "2,2,3,4"}).spec.num_heads == (2, 2, 3, 4)


@pytest.mark.shared
@pytest.mark.parametrize("name", list_models())
def test_the_twelve_are_told_from_their_shapes(shared: Path, name: str) -> None:
    shapes = json.loads((shared / "data" / "golden" / f"{name}.json").read_text())["state_dict"]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert read_spec(state, "x.pth") == get_spec(name)
    assert {key: list(value.shape) for key, value in expected_tensors(get_spec(name), 150).items()} == shapes


@pytest.mark.shared
def test_the_trained_checkpoint(camvid_checkpoint: Path) -> None:
    stored = torch.load(camvid_checkpoint, weights_only=True)
    found: Examined = examine(camvid_checkpoint)
    model = found.build()
    assert (found.spec, found.num_classes, found.ignored) == (get_spec("twins_svt-s_fpn"), 11, ())
    assert found.conventions.classes == tuple(stored["meta"]["CLASSES"])
    assert found.conventions.palette is not None and found.conventions.palette[0] == (128, 128, 128)
    assert found.conventions.miou == stored["meta"]["val_miou"]
    assert all(torch.equal(v, stored["state_dict"][k].to(v.dtype)) for k, v in model.state_dict().items())
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32, torch.int64}
    assert found.source.sha256 == hashlib.sha256(camvid_checkpoint.read_bytes()).hexdigest()
