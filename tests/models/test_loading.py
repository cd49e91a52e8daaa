"""Loading checkpoints, all or nothing, and recognizing the model that one holds."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import CLASSES, PALETTE, Tiny, save, weights

from twins_trt.errors import CheckpointError
from twins_trt.models import build_model, get_spec, list_models
from twins_trt.models.checkpoint import identify, identify_backbone, load_checkpoint, read_checkpoint
from twins_trt.models.segmentor import Segmentor
from twins_trt.verbs.build import FLAGS
from twins_trt.verbs.command_line import on_command_line


@pytest.fixture(scope="module")
def svt_s() -> Segmentor:
    return build_model("twins_svt-s_fpn", 3)


@pytest.fixture(scope="module")
def svt_s_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {
        k: v.half() if v.is_floating_point() else v for k, v in build_model("twins_svt-s_fpn", 3).state_dict().items()
    }
    meta = {"CLASSES": CLASSES, "PALETTE": PALETTE}
    return save({"state_dict": state, "meta": meta}, tmp_path_factory.mktemp("svt") / "svt-s.pth")


# --- loading, all or nothing ---


def _without(key: str) -> Callable[[dict], dict]:
    return lambda state: {k: v for k, v in state.items() if not k.startswith(key)}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_without("backbone.bias"), r"1 missing \(backbone\.bias\)"),
        (_without("backbone"), r"2 missing \(backbone\.weight, backbone\.bias\)"),
        (_without("auxiliary_head.bias"), r"1 missing \(auxiliary_head\.bias\)"),
        (lambda s: {**s, **{f"x{i}": torch.zeros(1) for i in range(5)}}, r"5 unexpected \(x0, x1, x2, \.\.\.\)"),
        (lambda s: {**s, "decode_head.bias": torch.zeros(3)}, r"1 wrongly shaped \(decode_head\.bias 3 for 2\)"),
        (lambda s: {**_without("backbone.bias")(s), "y": torch.zeros(1)}, r"1 missing .*; 1 unexpected"),
    ],
)
def test_what_does_not_fit_loads_nothing(tmp_path: Path, change: Callable[[dict], dict], cause: str) -> None:
    model, other = Tiny(), Tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = save({"state_dict": change(dict(other.state_dict()))}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=cause):
        load_checkpoint(model, path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_missing_auxiliary_head_is_accepted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, other = Tiny(), Tiny()
    kept = model.auxiliary_head.weight.clone()
    path = save(_without("auxiliary_head.")(dict(other.state_dict())), tmp_path / "x.pth")
    with caplog.at_level(logging.INFO, logger="twins_trt"):
        load_checkpoint(model, path)
    assert torch.equal(model.backbone.weight, other.backbone.weight)
    assert torch.equal(model.auxiliary_head.weight, kept)
    assert "no auxiliary head: its 2 tensors keep" in caplog.text


def test_a_zoo_model_loads_through_build_model(svt_s_file: Path) -> None:
    model = build_model("twins_svt-s_fpn", 3, svt_s_file)
    stored = torch.load(svt_s_file, weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[key].to(value.dtype)) for key, value in model.state_dict().items())
    assert model.meta is not None and model.meta.classes == tuple(CLASSES)


def test_another_number_of_classes_is_named(svt_s_file: Path) -> None:
    with pytest.raises(CheckpointError, match="trained on 3 classes, the model was asked for 150") as raised:
        build_model("twins_svt-s_fpn", 150, svt_s_file)
    assert raised.value.fix == "num_classes=3"
    with on_command_line(FLAGS), pytest.raises(CheckpointError) as raised:
        build_model("twins_svt-s_fpn", 150, svt_s_file)
    assert raised.value.fix == "--num-classes 3"


@pytest.mark.parametrize("name", ["twins_svt-s_upernet", "twins_pcpvt-s_fpn"])
def test_another_model_of_the_zoo_is_named(svt_s_file: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"holds twins_svt-s_fpn with 3 classes, not {name}") as raised:
        build_model(name, 3, svt_s_file)
    assert raised.value.fix == "use twins_svt-s_fpn num_classes=3"
    with on_command_line(FLAGS), pytest.raises(CheckpointError) as raised:
        build_model(name, 3, svt_s_file)
    assert raised.value.fix == "use twins_svt-s_fpn --num-classes 3"


def test_damage_within_the_right_model_is_listed(svt_s: Segmentor, tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in svt_s.state_dict().items()}
    del state["backbone.layers.2.3.norm1.weight"]
    with pytest.raises(
        CheckpointError, match=r"does not fit twins_svt-s_fpn: 1 missing \(backbone\.layers\.2\.3\.norm1"
    ):
        load_checkpoint(svt_s, save(state, tmp_path / "x.pth"))


def test_class_names_of_another_count_are_dropped(svt_s_file: Path, tmp_path: Path, svt_s: Segmentor) -> None:
    content = torch.load(svt_s_file, weights_only=True)
    content["meta"] = {"CLASSES": [*CLASSES, "car"], "PALETTE": PALETTE}
    meta = load_checkpoint(svt_s, save(content, tmp_path / "x.pth")).meta
    assert meta.classes is None and meta.palette == tuple(tuple(colour) for colour in PALETTE)


def test_a_backbone_alone_and_official_keys_are_explained(svt_s: Segmentor, tmp_path: Path) -> None:
    state = {k: v.half() for k, v in svt_s.state_dict().items() if k.startswith("backbone.")}
    with pytest.raises(CheckpointError, match="a backbone without a head") as raised:
        load_checkpoint(svt_s, save(state, tmp_path / "x.pth"))
    assert "load_backbone" in (raised.value.fix or "")
    official = {"blocks.0.0.attn.q.weight": torch.zeros(4, 4)}
    with pytest.raises(CheckpointError, match="official Twins repository") as raised:
        load_checkpoint(svt_s, save(official, tmp_path / "y.pth"))
    assert "twins-trt convert" in (raised.value.fix or "")


# --- recognition ---


def test_identify_built_models(svt_s: Segmentor) -> None:
    assert identify(svt_s.state_dict()) == ("twins_svt-s_fpn", 3)
    assert identify_backbone(svt_s.state_dict()) == ("svt", "s")
    assert identify_backbone(svt_s.backbone.state_dict()) == ("svt", "s")
    assert identify(svt_s.backbone.state_dict()) is None
    assert identify(weights()) is None and identify_backbone(weights()) is None


@pytest.mark.shared
@pytest.mark.parametrize("name", list_models())
def test_identify_all_twelve(shared: Path, name: str) -> None:
    shapes = json.loads((shared / "data" / "golden" / f"{name}.json").read_text())["state_dict"]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    spec = get_spec(name)
    assert identify(state) == (name, 150)
    assert identify_backbone(state) == (spec.family, spec.variant)
    state["decode_head.conv_seg.weight"] = torch.empty(19, 1, 1, 1, device="meta")
    del state["backbone.layers.0.0.norm1.weight"]
    assert identify(state) == (name, 19)
    del state["decode_head.conv_seg.weight"]
    assert identify(state) is None


@pytest.mark.shared
def test_the_trained_checkpoint(camvid_checkpoint: Path) -> None:
    stored = torch.load(camvid_checkpoint, weights_only=True)
    model = build_model("twins_svt-s_fpn", 11, camvid_checkpoint)
    assert model.meta is not None and model.meta.classes == tuple(stored["meta"]["CLASSES"])
    assert model.meta.palette is not None and model.meta.palette[0] == (128, 128, 128)
    assert model.meta.raw["val_miou"] == stored["meta"]["val_miou"]
    assert all(torch.equal(v, stored["state_dict"][k].to(v.dtype)) for k, v in model.state_dict().items())
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32, torch.int64}
    read = read_checkpoint(camvid_checkpoint)
    assert identify(read.state_dict) == ("twins_svt-s_fpn", 11)
    assert read.sha256 == hashlib.sha256(camvid_checkpoint.read_bytes()).hexdigest()
