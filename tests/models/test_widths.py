"""Architectures read off tensors: own widths and depths load and compute what they were built as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import save
from torch import Tensor

from twins_trt.errors import CheckpointError, UsageError
from twins_trt.models.examine import examine
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor, build_model
from twins_trt.models.widths import read_spec
from twins_trt.models.zoo import DEMO, ModelSpec

UPERNET = replace(DEMO, name="twins_svt-demo_upernet", head="upernet", uper_channels=24, auxiliary_channels=16)
PCPVT = replace(
    DEMO,
    name="twins_pcpvt-custom_fpn",
    family="pcpvt",
    variant="custom",
    embed_dims=(64, 64, 128, 192),
    depths=(1, 2, 1, 3),
    num_heads=(1, 1, 2, 3),
    mlp_ratios=(8, 2, 4, 1),
    sr_ratios=(4, 4, 2, 1),
    drop_path_rate=0.2,
)
SVT = replace(
    DEMO,
    name="twins_svt-custom_fpn",
    variant="custom",
    embed_dims=(32, 64, 64, 96),
    depths=(2, 1, 4, 2),
    num_heads=(1, 2, 2, 3),
    drop_path_rate=0.2,
)


def stored(spec: ModelSpec, path: Path, *, threshold: float | None = None) -> Segmentor:
    model = Segmentor(spec, 2 if threshold else 3, threshold=threshold).eval()
    seed_weights(model)
    save({"state_dict": model.state_dict()}, path)
    return model


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (replace(DEMO, fpn_channels=(40, 24)), "twins_svt-demo_fpn"),
        (UPERNET, "twins_svt-demo_upernet"),
        (PCPVT, "twins_pcpvt-custom_fpn"),
        (SVT, "twins_svt-custom_fpn"),
    ],
    ids=["narrow neck", "narrow UPerNet", "own PCPVT", "own SVT"],
)
def test_own_widths_load_and_compute_the_same(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    path = tmp_path / "x.pth"
    model = stored(spec, path)
    found = examine(path)
    x = torch.randn(1, 3, 70, 90)
    with torch.inference_mode():
        assert torch.equal(found.build()(x), model(x))
    assert found.spec.name == name
    head = ("uper_channels", "auxiliary_channels") if spec.head == "upernet" else ("fpn_channels",)
    fields = ("embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios", "head", "drop_path_rate", *head)
    assert [getattr(found.spec, each) for each in fields] == [getattr(spec, each) for each in fields]
    assert build_model(name, 3, path).spec == found.spec


def _resized(key: str, *shape: int) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {**state, key: torch.zeros(*shape)}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_resized("backbone.patch_embeds.1.projection.weight", 64, 32, 3, 3), "patches of 3 pixels in stage 2"),
        (_resized("backbone.patch_embeds.1.projection.weight", 64), r"projection\.weight has the shape \[64\]"),
        (_resized("backbone.layers.0.1.attn.qkv.weight", 96, 32), r"another order of LSA and GSA.*\(stage 1\)"),
        (_resized("backbone.layers.0.0.ffn.layers.0.0.weight", 100, 32), "an FFN of 100 channels in a stage of 32"),
        (_resized("backbone.layers.4.0.x", 1), "a stage 5"),
        (_resized("backbone.layers.1.7.x", 1), r"lacks blocks of stage 2: it has \[0, 1, 7\]"),
        (
            lambda s: {k.replace("scale_heads", "segformer"): v for k, v in s.items()},
            "a decode head that is neither FPNHead's nor UPerHead's",
        ),
        (lambda s: {k: v for k, v in s.items() if "patch_embeds.0" not in k}, "no Twins backbone"),
    ],
)
def test_what_no_twins_model_has_is_named(change: Callable, cause: str) -> None:
    state = change(Segmentor(DEMO, 3).state_dict())
    with pytest.raises(CheckpointError, match=cause) as raised:
        read_spec(state, "x.pth")
    assert raised.value.fix


def test_a_pcpvt_with_norms_after_its_stages_is_refused() -> None:
    state = {**Segmentor(PCPVT, 3).state_dict(), "backbone.norm_list.0.weight": torch.ones(64)}
    with pytest.raises(CheckpointError, match="norm_after_stage"):
        read_spec(state, "x.pth")


def test_a_head_of_one_logit_tells_two_classes_by_its_threshold(tmp_path: Path) -> None:
    model = stored(DEMO, tmp_path / "x.pth", threshold=0.3)
    assert model.state_dict()["decode_head.conv_seg.weight"].shape[0] == 1
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        logits = model(x)
        mask = model.class_logits(logits).argmax(dim=1)
    assert logits.shape[1] == 1 and model.num_classes == 2
    assert torch.equal(mask, (logits[:, 0].sigmoid() > 0.3).long())
    assert 0 < mask.float().mean() < 1


@pytest.mark.parametrize(
    ("threshold", "classes", "cause"), [(0.0, 2, "no probability"), (1.5, 2, "no probability"), (0.5, 3, "2 classes")]
)
def test_a_threshold_that_cannot_be_is_refused(threshold: float, classes: int, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        Segmentor(DEMO, classes, threshold=threshold)


def test_a_head_with_softmax_gives_its_logits_as_they_are() -> None:
    logits = torch.randn(1, 3, 4, 4)
    assert Segmentor(DEMO, 3).class_logits(logits) is logits
