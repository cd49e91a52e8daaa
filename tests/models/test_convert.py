"""Official Twins key names to mmsegmentation's and back: names, rows of q, k and v, files, and fine-tuning starts."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from checkpoints import held
from torch import Tensor

from tests.models.origins import mmpretrain_shapes, official_shapes, sssegmentation_shapes
from twins_trt.errors import CheckpointError, UsageError
from twins_trt.models import build_model, get_spec, list_models
from twins_trt.models import convert as module
from twins_trt.models.checkpoint import read_checkpoint
from twins_trt.models.convert import ConvertedState, convert_file, convert_state_dict, load_backbone
from twins_trt.models.segmentor import Segmentor
from twins_trt.verbs.command_line import on_command_line
from twins_trt.verbs.convert import FLAGS

BACKBONES = ["pcpvt-s", "pcpvt-b", "pcpvt-l", "svt-s", "svt-b", "svt-l"]


def filled(shapes: Mapping[str, tuple[int, ...]], *, shrink: int = 1) -> dict[str, Tensor]:
    """Random tensors of these shapes; `shrink` divides the dimensions that it divides, which keeps their ratios."""
    generator = torch.Generator().manual_seed(0)
    smaller = {key: [d // shrink if d % shrink == 0 else d for d in shape] for key, shape in shapes.items()}
    return {key: torch.randn(shape, generator=generator) for key, shape in smaller.items()}


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert set(one) == set(other)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.fixture(scope="module")
def models() -> dict[str, Segmentor]:
    return {family: build_model(f"twins_{family}-s_fpn", 3) for family in ("pcpvt", "svt")}


@pytest.fixture
def model(request: pytest.FixtureRequest, models: dict[str, Segmentor]) -> Segmentor:
    return models[request.param]


both = pytest.mark.parametrize("model", ["pcpvt", "svt"], indirect=True)


@both
def test_official_classification_weights_become_the_backbone(model: Segmentor) -> None:
    spec = model.spec
    official = filled(official_shapes(spec, classifier=True, norm_list=False))
    converted = convert_state_dict(official)
    wanted = {key: value.shape for key, value in model.backbone.state_dict().items() if "norm_list" not in key}
    assert {key: value.shape for key, value in converted.state_dict.items()} == wanted
    assert (converted.family, converted.variant, converted.direction) == (spec.family, "s", "to_mmseg")
    assert set(converted.dropped) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert "classifier" in converted.dropped["head.weight"]

    state, width = converted.state_dict, spec.embed_dims[1]
    q, kv = official["blocks.1.1.attn.q.weight"], official["blocks.1.1.attn.kv.weight"]
    packed = state["layers.1.1.attn.attn.in_proj_weight"]
    assert torch.equal(packed[:width], q) and torch.equal(packed[width:], kv)
    packed = state["layers.1.1.attn.attn.in_proj_bias"]
    assert torch.equal(packed[:width], official["blocks.1.1.attn.q.bias"])
    for new, old in {
        "layers.1.1.attn.attn.out_proj.weight": "blocks.1.1.attn.proj.weight",
        "layers.1.1.attn.sr.weight": "blocks.1.1.attn.sr.weight",
        "layers.1.1.attn.norm.bias": "blocks.1.1.attn.norm.bias",
        "layers.2.0.ffn.layers.0.0.weight": "blocks.2.0.mlp.fc1.weight",
        "layers.2.0.ffn.layers.1.bias": "blocks.2.0.mlp.fc2.bias",
        "patch_embeds.3.projection.bias": "patch_embeds.3.proj.bias",
        "position_encodings.0.proj.weight": "pos_block.0.proj.0.weight",
    }.items():
        assert torch.equal(state[new], official[old])
    if spec.family == "svt":
        assert torch.equal(state["layers.3.2.attn.qkv.weight"], official["blocks.3.2.attn.qkv.weight"])
        assert torch.equal(state["layers.3.2.attn.proj.weight"], official["blocks.3.2.attn.proj.weight"])


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_there_and_back_is_the_identity_from_official(backbone: str, prefix: str) -> None:
    spec = get_spec(f"twins_{backbone}_upernet")
    shapes = official_shapes(spec, classifier=False, norm_list=spec.family == "svt")
    official = {prefix + key: value for key, value in filled(shapes, shrink=32).items()}
    if prefix:
        official["decode_head.conv_seg.weight"] = torch.ones(150, 8, 1, 1)
        official["auxiliary_head.conv_seg.bias"] = torch.ones(150)
    there = convert_state_dict(official, family=spec.family, direction="to_mmseg")
    back = convert_state_dict(there.state_dict, family=spec.family, direction="to_official")
    assert_equal(back.state_dict, official)
    assert there.dropped == back.dropped == {}
    assert not set(there.state_dict) & {key for key in official if ".attn.q." in key}


@pytest.mark.shared
@pytest.mark.parametrize("name", list_models())
def test_there_and_back_is_the_identity_on_all_twelve(shared: Path, name: str) -> None:
    table = json.loads((shared / "data" / "golden" / f"{name}.json").read_text())["state_dict"]
    state = filled(table, shrink=32)
    official = convert_state_dict(state)
    spec = get_spec(name)
    assert (official.family, official.direction, official.dropped) == (spec.family, "to_official", {})
    written = official_shapes(spec, classifier=False, norm_list=spec.family == "svt")
    heads = {key for key in table if not key.startswith("backbone.")}
    assert set(official.state_dict) == {f"backbone.{key}" for key in written} | heads
    assert_equal(convert_state_dict(official.state_dict).state_dict, state)


@pytest.mark.shared
@pytest.mark.parametrize("name", list_models())
def test_the_official_tables_convert_to_the_golden_ones(shared: Path, name: str) -> None:
    table = json.loads((shared / "data" / "golden" / f"{name}.json").read_text())["state_dict"]
    spec = get_spec(name)
    shapes = official_shapes(spec, classifier=False, norm_list=spec.family == "svt")
    official = {f"backbone.{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}
    converted = convert_state_dict(official)
    wanted = {key: shape for key, shape in table.items() if key.startswith("backbone.")}
    assert {key: list(value.shape) for key, value in converted.state_dict.items()} == wanted
    assert (converted.family, converted.variant) == (spec.family, spec.variant)


# --- what is refused ---


def small(family: str) -> dict[str, Tensor]:
    spec = get_spec(f"twins_{family}-s_fpn")
    return filled(official_shapes(spec, classifier=False, norm_list=False), shrink=32)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UsageError, match="family must be one of pcpvt, svt"):
        convert_state_dict(small("svt"), family="swin")
    with pytest.raises(UsageError, match="direction must be one of"):
        convert_state_dict(small("svt"), direction="up")
    with pytest.raises(CheckpointError, match="the weights are svt's, not pcpvt's"):
        convert_state_dict(small("svt"), family="pcpvt")
    with pytest.raises(CheckpointError, match="the weights have official keys, which to_official"):
        convert_state_dict(small("pcpvt"), direction="to_official")
    with pytest.raises(CheckpointError, match="mmsegmentation's keys, which to_mmseg"):
        convert_state_dict(convert_state_dict(small("pcpvt")).state_dict, direction="to_mmseg")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda s: {"fc.weight": torch.zeros(1)}, "no Twins weights"),
        (lambda s: {**s, "layers.0.0.norm1.weight": torch.zeros(2)}, "no Twins weights"),
        (lambda s: {**s, "cls_token": torch.zeros(1, 1, 2)}, "PVT weights, not Twins"),
        (lambda s: {**s, "pos_embeds.0": torch.zeros(1, 4, 2)}, "PVT weights, not Twins"),
        (lambda s: {k: v for k, v in s.items() if k != "blocks.1.1.attn.kv.weight"}, r"attn\.kv\.weight is not"),
        (lambda s: {k: v for k, v in s.items() if k != "blocks.1.1.attn.q.bias"}, r"attn\.q\.bias is not"),
        (lambda s: {**s, "blocks.1.1.attn.q.weight": torch.zeros(3, 4)}, "do not fit together"),
        (lambda s: {**s, "blocks.1.1.attn.q.bias": torch.tensor(0.0)}, "do not fit together"),
        (
            lambda s: {**{f"backbone.{k}": v for k, v in s.items()}, "rpn_head.conv.weight": torch.zeros(1)},
            r"rpn_head\.conv\.weight belongs to no backbone, neck or head",
        ),
    ],
)
@pytest.mark.parametrize("family", ["pcpvt", "svt"])
def test_broken_weights_are_refused(family: str, change: object, cause: str) -> None:
    assert callable(change)
    with pytest.raises(CheckpointError, match=cause):
        convert_state_dict(change(small(family)))


def test_rows_that_cannot_be_split_are_refused() -> None:
    state = convert_state_dict(small("svt")).state_dict
    with pytest.raises(CheckpointError, match="cannot be split into q, k and v"):
        convert_state_dict({**state, "layers.0.1.attn.attn.in_proj_bias": torch.zeros(7)})


def test_what_has_no_counterpart_is_dropped_with_its_reason() -> None:
    extra = {"blocks.0.0.attn.total_ops": torch.zeros(1), "blocks.0.0.attn.q.weight": torch.zeros(2, 2)}
    converted = convert_state_dict({**small("svt"), **extra})
    assert converted.dropped == dict.fromkeys(extra, "no part of a Twins backbone")


# --- files ---


def _halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


@both
def test_a_segmentation_file_goes_there_and_back(model: Segmentor, tmp_path: Path) -> None:
    name = model.spec.name
    source = _halved(model.state_dict())
    meta = {"CLASSES": ["a", "b", "c"], "iter": 5}
    torch.save({"state_dict": source, "meta": meta, "optimizer": {}}, tmp_path / "mmseg.pth")
    official = convert_file(tmp_path / "mmseg.pth", tmp_path / "new" / "official.pth")
    assert (official.family, official.variant, official.direction) == (model.spec.family, "s", "to_official")

    # As the official repository trained them, with the unused classifier still in the backbone.
    content = torch.load(tmp_path / "new" / "official.pth", weights_only=True)
    content["state_dict"]["backbone.head.weight"] = torch.zeros(1000, 512)
    content["state_dict"]["backbone.norm.weight"] = torch.zeros(512)
    torch.save(content, tmp_path / "official.pth")
    back = convert_file(tmp_path / "official.pth", tmp_path / "back.pth")
    assert set(back.dropped) == {"backbone.head.weight", "backbone.norm.weight"}
    loaded = build_model(name, 3, tmp_path / "back.pth")
    assert_equal(_halved(loaded.state_dict()), source)
    assert loaded.meta is not None and loaded.meta.classes == ("a", "b", "c")
    raw = loaded.meta.raw
    assert raw["iter"] == 5
    assert raw["converted_from"] == {
        "file": "official.pth",
        "sha256": read_checkpoint(tmp_path / "official.pth").sha256,
        "direction": "to_mmseg",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth", "mmseg.pth", "new", "official.pth"]


def test_an_official_backbone_is_written_as_that_repository_reads_it(
    models: dict[str, Segmentor], tmp_path: Path
) -> None:
    torch.save(_halved(models["svt"].backbone.state_dict()), tmp_path / "backbone.pth")
    convert_file(tmp_path / "backbone.pth", tmp_path / "official.pth", direction="to_official")
    content = torch.load(tmp_path / "official.pth", weights_only=True)
    assert set(content) == {"model", "meta"} and "blocks.0.0.attn.qkv.weight" in content["model"]


def test_an_existing_file_is_kept_unless_told(models: dict[str, Segmentor], tmp_path: Path) -> None:
    torch.save(_halved(models["svt"].backbone.state_dict()), tmp_path / "a.pth")
    (tmp_path / "b.pth").write_text("mine")
    with pytest.raises(UsageError, match="exists") as raised:
        convert_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert "overwrite=True" in (raised.value.fix or "") and (tmp_path / "b.pth").read_text() == "mine"
    with on_command_line(FLAGS), pytest.raises(UsageError, match="overwrite it: --overwrite"):
        convert_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert (tmp_path / "b.pth").read_text() == "mine"
    convert_file(tmp_path / "a.pth", tmp_path / "b.pth", overwrite=True)
    assert "blocks.0.0.attn.qkv.weight" in read_checkpoint(tmp_path / "b.pth").state_dict
    with pytest.raises(UsageError, match="is a directory"):
        convert_file(tmp_path / "a.pth", tmp_path, overwrite=True)


def test_a_failed_write_leaves_nothing(
    models: dict[str, Segmentor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(_halved(models["svt"].backbone.state_dict()), tmp_path / "a.pth")

    def fill_up(content: object, file: object) -> None:
        assert hasattr(file, "write")
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.torch, "save", fill_up)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        convert_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_incomplete_weights_are_not_written(models: dict[str, Segmentor], tmp_path: Path) -> None:
    official = convert_state_dict(_halved(models["svt"].state_dict())).state_dict
    torch.save({k: v for k, v in official.items() if k != "backbone.blocks.2.4.norm1.weight"}, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"does not fit twins_svt-s_fpn: 1 missing \(backbone\.layers\.2\.4\.norm1"
    ):
        convert_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()

    backbone = {k.removeprefix("backbone."): v for k, v in official.items() if k.startswith("backbone.blocks.")}
    torch.save(backbone, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="blocks, but no patch embedding"):
        convert_file(tmp_path / "c.pth", tmp_path / "b.pth")


def test_another_architecture_is_converted_by_name_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(small("svt"), tmp_path / "a.pth")
    converted = convert_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert converted.variant is None and "none of the zoo's backbones" in caplog.text
    assert_equal(read_checkpoint(tmp_path / "b.pth").state_dict, converted.state_dict)


def test_errors_name_the_file(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: these are no Twins weights"):
        convert_file(tmp_path / "a.pth", tmp_path / "b.pth")


# --- fine-tuning starts ---


@both
@pytest.mark.parametrize("source", ["official", "mmseg", "whole", "official whole"])
def test_load_backbone(model: Segmentor, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="twins_trt")
    shapes = official_shapes(model.spec, classifier=True, norm_list=False)
    official = filled(shapes)
    backbone = convert_state_dict(official).state_dict
    other = {**model.state_dict(), **{f"backbone.{key}": value for key, value in backbone.items()}}
    weights = {
        "official": {"model": official},
        "mmseg": {**backbone, "norm.weight": official["norm.weight"]},  # as mmsegmentation's converter leaves it
        "whole": {"state_dict": other},
        "official whole": {"state_dict": convert_state_dict(other).state_dict},
    }[source]
    torch.save(weights, tmp_path / "x.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_backbone(model, tmp_path / "x.pth")
    after = model.state_dict()
    assert_equal({key: after[f"backbone.{key}"] for key in backbone}, backbone)
    rest = [key for key in after if not key.startswith("backbone.") or "norm_list" in key]
    assert_equal({key: after[key] for key in rest}, {key: before[key] for key in rest})
    keeps_its_own = model.spec.family == "svt" and source in ("official", "mmseg")
    assert ("no norm_list" in caplog.text) == keeps_its_own


def test_load_backbone_refuses_another(models: dict[str, Segmentor], tmp_path: Path) -> None:
    torch.save(_halved(models["pcpvt"].backbone.state_dict()), tmp_path / "x.pth")
    before = {key: value.clone() for key, value in models["svt"].state_dict().items()}
    with pytest.raises(CheckpointError, match="holds the backbone pcpvt-s, not svt-s"):
        load_backbone(models["svt"], tmp_path / "x.pth")
    broken = _halved(models["svt"].backbone.state_dict())
    del broken["layers.0.0.norm2.bias"]
    torch.save(broken, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(layers\.0\.0\.norm2\.bias\)"):
        load_backbone(models["svt"], tmp_path / "y.pth")
    assert_equal(models["svt"].state_dict(), before)


@pytest.mark.shared
def test_the_trained_checkpoint_survives_both_ways(camvid_checkpoint: Path, tmp_path: Path) -> None:
    there: ConvertedState = convert_file(camvid_checkpoint, tmp_path / "official.pth")
    assert held(there.state_dict) == (
        "twins_svt-s_fpn",
        11,
    )  # backbone and head are still told apart under official keys
    convert_file(tmp_path / "official.pth", tmp_path / "back.pth")
    original, back = read_checkpoint(camvid_checkpoint), read_checkpoint(tmp_path / "back.pth")
    assert_equal(back.state_dict, original.state_dict)
    assert back.meta.classes == original.meta.classes


# --- other projects and wrappers ---


def test_files_behind_wrappers_are_converted(models: dict[str, Segmentor], tmp_path: Path) -> None:
    state = models["svt"].state_dict()
    wrapped = {f"model.module._orig_mod.{key}": value for key, value in state.items()} | {"loss.w": torch.zeros(1)}
    torch.save({"state_dict": wrapped}, tmp_path / "a.pth")
    there = convert_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert there.direction == "to_official" and set(there.dropped) == {"loss.w"}
    assert_equal(convert_state_dict(there.state_dict).state_dict, state)


def test_sssegmentation_and_mmpretrain_are_converted(tmp_path: Path) -> None:
    spec = get_spec("twins_svt-s_upernet")
    torch.save({"model": filled(sssegmentation_shapes(spec))}, tmp_path / "a.pth")
    there = convert_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert (there.direction, there.variant, there.dropped) == ("to_mmseg", "s", {})
    loaded = build_model("twins_svt-s_upernet", 150, tmp_path / "b.pth").state_dict()
    assert set(loaded) == set(there.state_dict)
    assert_equal(*({k: v for k, v in each.items() if "tracked" not in k} for each in (loaded, there.state_dict)))

    torch.save({"state_dict": filled(mmpretrain_shapes(spec))}, tmp_path / "c.pth")
    there = convert_file(tmp_path / "c.pth", tmp_path / "d.pth")
    assert (there.direction, there.family, there.variant) == ("to_mmseg", "svt", "s")
    assert len(there.dropped) == 4 and all(key.startswith("backbone.") for key in there.state_dict)
    with pytest.raises(CheckpointError, match="have mmpretrain keys, which to_official does not start from"):
        convert_file(tmp_path / "c.pth", tmp_path / "e.pth", direction="to_official")


def test_an_incomplete_backbone_is_not_written(tmp_path: Path) -> None:
    state = filled(mmpretrain_shapes(get_spec("twins_svt-s_fpn")))
    del state["backbone.stages.0.0.norm1.weight"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"does not fit svt-s's backbone: 1 missing \(backbone\.layers\.0\.0\.nor"
    ):
        convert_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()
