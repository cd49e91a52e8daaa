"""Whose checkpoint it is: prefixes that wrappers leave, origins, and what each origin tells."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.models.origins import Shapes, mmpretrain_shapes, official_shapes, sssegmentation_shapes
from twins_trt.errors import CheckpointError
from twins_trt.models import get_spec
from twins_trt.models.examine import expected_tensors
from twins_trt.models.formats import recognize

DEMO = get_spec("twins_svt-demo_fpn")
State = dict[str, Tensor]


def empty(shapes: Shapes) -> State:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def whole() -> State:
    """Names and shapes of the demo's whole model, as mmsegmentation writes them."""
    return expected_tensors(DEMO, 8)


def renamed(change: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {change(key): value for key, value in state.items()}


PREFIXES = {
    "none": renamed(lambda key: key),
    "DataParallel": renamed(lambda key: f"module.{key}"),
    "compile": renamed(lambda key: f"_orig_mod.{key}"),
    "DataParallel of compile": renamed(lambda key: f"module._orig_mod.{key}"),
    "compile of DataParallel": renamed(lambda key: f"_orig_mod.module.{key}"),
    "compiled backbone": renamed(lambda key: key.replace("backbone.", "backbone._orig_mod.", 1)),
    "compiled head": renamed(lambda key: key.replace("decode_head.", "decode_head._orig_mod.", 1)),
    "Lightning": renamed(lambda key: f"model.{key}"),
    "Lightning, net": renamed(lambda key: f"net.{key}"),
    "Lightning, segmentor": renamed(lambda key: f"segmentor.{key}"),
    "Lightning of compile": renamed(lambda key: f"model._orig_mod.{key}"),
    "FSDP": renamed(lambda key: f"_fsdp_wrapped_module.{key}"),
}


@pytest.mark.parametrize("case", PREFIXES)
def test_prefixes_of_wrappers_are_taken_off(whole: State, case: str) -> None:
    found = recognize(PREFIXES[case](whole), "x.pth")
    assert list(found.state_dict) == list(whole)
    assert all(found.state_dict[key] is value for key, value in whole.items())
    assert (found.origin, found.whole, found.padding, found.spec_changes) == ("mmseg", True, "parity", {})
    assert found.dropped == {}


@pytest.mark.parametrize("case", PREFIXES)
def test_prefixes_of_a_backbone_alone_are_taken_off(whole: State, case: str) -> None:
    backbone = {key: value for key, value in whole.items() if key.startswith("backbone.")}
    bare = {key.removeprefix("backbone."): value for key, value in backbone.items()}
    for state in (backbone, bare):
        found = recognize(PREFIXES[case](state), "x.pth")
        assert set(found.state_dict) == set(backbone)
        assert (found.origin, found.whole) == ("mmseg", False)


def test_what_lies_beside_the_model_is_dropped_by_its_own_name(whole: State) -> None:
    state = {f"model.{key}": value for key, value in whole.items()} | {"criterion.weight": torch.zeros(8)}
    found = recognize(state, "x.pth")
    assert set(found.state_dict) == set(whole)
    assert found.dropped == {"criterion.weight": "not below model., where the model is"}


def test_parts_of_other_models_are_dropped(whole: State) -> None:
    found = recognize({**whole, "rpn_head.conv.weight": torch.zeros(1)}, "x.pth")
    assert set(found.state_dict) == set(whole)
    assert found.dropped == {"rpn_head.conv.weight": "no part of a Twins segmentation model"}


def test_several_models_in_one_file_are_refused(whole: State) -> None:
    both = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in whole.items()}
    with pytest.raises(CheckpointError, match=r"x\.pth holds 2 Twins models, .* student\.backbone\., teacher\.back"):
        recognize(both, "x.pth")
    twice = {**whole, "module.decode_head.conv_seg.bias": torch.zeros(8)}
    with pytest.raises(CheckpointError, match=r"decode_head\.conv_seg\.bias twice"):
        recognize(twice, "x.pth")


def test_weights_of_other_models_have_no_origin() -> None:
    state = {"conv.weight": torch.zeros(4, 3, 3, 3)}
    found = recognize(state, "x.pth")
    assert (found.origin, found.whole, found.state_dict, found.licence) == ("", False, state, "")


# --- origins ---


def official(*, norm_list: bool, heads: State | None = None, family: str = "svt") -> State:
    spec = get_spec(f"twins_{family}-s_fpn")
    shapes = official_shapes(spec, classifier=True, norm_list=norm_list)
    prefix = "" if heads is None else "backbone."
    return {f"{prefix}{key}": value for key, value in empty(shapes).items()} | (heads or {})


def test_official_segmentation_files() -> None:
    for name in ("twins_svt-s_upernet", "twins_svt-s_fpn", "twins_pcpvt-s_upernet"):
        spec = get_spec(name)
        expected = expected_tensors(spec, 150)
        heads = {key: value for key, value in expected.items() if not key.startswith("backbone.")}
        found = recognize(official(norm_list=spec.family == "svt", heads=heads, family=spec.family), "alt_gvt.pth")
        assert {key: value.shape for key, value in found.state_dict.items()} == {
            key: value.shape for key, value in expected.items()
        }
        assert (found.origin, found.whole, found.padding) == ("official", True, "parity")
        assert found.spec_changes == {"block_norm_eps": 1e-6}
        assert found.licence == "Apache-2.0, if published by Meituan-AutoML/Twins"
        assert set(found.dropped) == {f"backbone.{key}" for key in ("norm.weight", "norm.bias", *HEAD)}
        assert "ImageNet classifier" in found.dropped["backbone.head.weight"]


HEAD = ("head.weight", "head.bias")


@pytest.mark.parametrize(
    ("file", "origin", "padding"),
    [
        ("alt_gvt_small.pth", "official", "parity"),
        ("pcpvt_small.pth", "official", "parity"),
        ("model.safetensors", "timm", "unmasked"),
        ("alt_gvt_small.safetensors", "timm", "unmasked"),
        ("pytorch_model.bin", "timm", "unmasked"),
        ("twins_svt_small-42e5f78c.pth", "timm", "unmasked"),
        ("my_timm.pth", "timm", "unmasked"),
    ],
)
def test_the_files_name_tells_timm_from_the_official_classifiers(
    file: str, origin: str, padding: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="twins_trt")
    found = recognize(official(norm_list=False), f"folder/{file}")
    assert (found.origin, found.padding, found.whole) == (origin, padding, False)
    assert found.spec_changes == {"block_norm_eps": 1e-6}
    assert set(found.dropped) == {"norm.weight", "norm.bias", *HEAD}
    (record,) = caplog.records
    assert f"{file} has the names that" in record.getMessage()
    assert ("timm's" if origin == "timm" else "official repository's") in record.getMessage()


@pytest.mark.parametrize(("family", "changes"), [("svt", {}), ("pcpvt", {"block_norm_eps": 1e-6})])
def test_mmpretrain(family: str, changes: dict[str, float]) -> None:
    spec = get_spec(f"twins_{family}-s_fpn")
    found = recognize(empty(mmpretrain_shapes(spec)), "x.pth")
    assert (found.origin, found.whole, found.padding, found.spec_changes) == ("mmpretrain", False, "parity", changes)
    assert found.licence == "Apache-2.0, if published by open-mmlab/mmpretrain"
    assert set(found.dropped) == {f"backbone.norm_after_stage3.{kind}" for kind in ("weight", "bias")} | {
        f"head.fc.{kind}" for kind in ("weight", "bias")
    }
    assert "last LayerNorm" in found.dropped["backbone.norm_after_stage3.bias"]


def test_mmpretrain_with_a_norm_after_every_stage_has_svts_norm_list() -> None:
    spec = get_spec("twins_svt-s_fpn")
    state = empty(mmpretrain_shapes(spec))
    for i, width in enumerate(spec.embed_dims):
        state |= {f"backbone.norm_after_stage{i}.{kind}": torch.empty(width) for kind in ("weight", "bias")}
    found = recognize(state, "x.pth")
    expected = {key for key in expected_tensors(spec, 150) if key.startswith("backbone.")}
    assert set(found.state_dict) == expected
    assert set(found.dropped) == {"head.fc.weight", "head.fc.bias"}


def test_sssegmentation() -> None:
    spec = get_spec("twins_svt-s_upernet")
    found = recognize({f"module.{k}": v for k, v in empty(sssegmentation_shapes(spec)).items()}, "x.pth")
    assert set(found.state_dict) == set(expected_tensors(spec, 150))
    assert (found.origin, found.whole, found.padding, found.spec_changes) == ("sssegmentation", True, "parity", {})
    assert found.dropped == {} and found.licence == "Apache-2.0, if published by SegmentationBLWX/sssegmentation"


def test_parts_without_a_counterpart_are_dropped_with_their_reason() -> None:
    state = empty(sssegmentation_shapes(get_spec("twins_svt-s_upernet"))) | {"pixel_sampler.x": torch.zeros(1)}
    assert recognize(state, "x.pth").dropped == {"pixel_sampler.x": "no part of a Twins segmentation model"}
    state = official(norm_list=False) | {"blocks.0.0.attn.relative_position_index": torch.zeros(1)}
    found = recognize(state, "x.pth")
    assert found.dropped["blocks.0.0.attn.relative_position_index"] == "no part of a Twins backbone"


def test_incomplete_and_pvt_weights_are_refused_with_the_files_name() -> None:
    state = official(norm_list=False)
    del state["blocks.1.1.attn.kv.weight"]
    with pytest.raises(CheckpointError, match=r"x\.pth: blocks\.1\.1\.attn\.q\.weight is there but .*kv\.weight is no"):
        recognize(state, "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: these are PVT weights, not Twins: cls_token"):
        recognize(official(norm_list=False) | {"cls_token": torch.zeros(1)}, "x.pth")
