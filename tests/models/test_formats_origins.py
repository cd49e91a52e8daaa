"""Other projects' weights compute what their own models compute: held against outputs of their code.

`make_origins_golden.py` recorded names, shapes and outputs of timm's, mmpretrain's, SSSegmentation's and the official
repository's models on weights made from the tensors' names.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.make_origins_golden import BACKBONES, SIZES, image, sample
from tests.models.origins import (
    Shapes,
    digest,
    mmpretrain_shapes,
    official_shapes,
    sssegmentation_shapes,
    sssegmentation_width,
)
from twins_trt.models import ModelSpec, get_spec
from twins_trt.models.backbone import Backbone
from twins_trt.models.examine import expected_tensors
from twins_trt.models.formats import Recognized, recognize
from twins_trt.models.seeded import seeded_array
from twins_trt.models.segmentor import Segmentor

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden_origins.json").read_text())
FILES = {"timm": "model.safetensors", "official": "alt_gvt.pth", "official segmentation": "x.pth"}
TOLERANCE = 1e-9  # of the largest value, in float64; another epsilon moves it by 1e-6 and more
NORM_OF_KEYS = 1e-5  # mmpretrain's PCPVT: `models.formats` says why its sub-sampled keys' epsilon is not taken over
KINDS = ("timm", "mmpretrain", "sssegmentation", "official segmentation", "official classifier")


def spec_of(backbone: str, head: str = "upernet") -> ModelSpec:
    return get_spec(f"twins_{backbone}_{head}")


def sssegmentation_spec(backbone: str) -> ModelSpec:
    spec = spec_of(backbone)
    return replace(spec, uper_channels=sssegmentation_width(spec), auxiliary_channels=512)


def listed(kind: str, backbone: str) -> Shapes:
    spec = spec_of(backbone)
    if kind == "mmpretrain":
        return mmpretrain_shapes(spec)
    if kind == "sssegmentation":
        return sssegmentation_shapes(spec)
    svt_segmentation = kind == "official segmentation" and spec.family == "svt"
    return official_shapes(spec, classifier=True, norm_list=svt_segmentation)


def seeded(kind: str, backbone: str) -> dict[str, Tensor]:
    """A project's weights under its own names, each made from its name as the recorded model's were."""
    return {key: torch.from_numpy(seeded_array(key, shape)) for key, shape in listed(kind, backbone).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_lists_are_those_of_the_projects_own_models(kind: str, backbone: str) -> None:
    assert digest(listed(kind, backbone)) == GOLDEN[f"{kind} {backbone}"]["keys"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_list_becomes_the_model(kind: str, backbone: str) -> None:
    spec = spec_of(backbone)
    found = recognize({k: torch.empty(s, device="meta") for k, s in listed(kind, backbone).items()}, "x.pth")
    wide = sssegmentation_spec(backbone) if kind == "sssegmentation" else spec
    expected = {key: value.shape for key, value in expected_tensors(wide, 150).items()}
    if kind != "sssegmentation":
        without = "backbone.norm_list." if kind != "official segmentation" else "nothing"
        expected = {k: s for k, s in expected.items() if k.startswith("backbone.") and not k.startswith(without)}
    assert {key: value.shape for key, value in found.state_dict.items()} == expected
    assert found.whole == (kind == "sssegmentation")


def backbone_of(found: Recognized, spec: ModelSpec) -> Backbone:
    """The backbone with these weights; without the norms after SVT's stages where the weights have none."""
    model = Backbone(replace(spec, **found.spec_changes), padding=found.padding).eval()
    state = {k.removeprefix("backbone."): v for k, v in found.state_dict.items() if k.startswith("backbone.")}
    misfits = model.load_state_dict(state, strict=False)
    assert not misfits.unexpected_keys and all(key.startswith("norm_list.") for key in misfits.missing_keys)
    model.norm_after_stage = any(key.startswith("norm_list.") for key in state)
    return model.double()


def error(outputs: list[Tensor], recorded: list[dict[str, Any]]) -> float:
    """The largest difference from the recorded samples, of the largest value."""
    assert [list(each.shape) for each in outputs] == [each["shape"] for each in recorded]
    errors = [
        float(np.abs(np.array(sample(ours.numpy())) - np.array(theirs["samples"])).max()) / theirs["absmax"]
        for ours, theirs in zip(outputs, recorded, strict=True)
    ]
    return max(errors)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["timm", "mmpretrain", "official segmentation"])
@pytest.mark.parametrize("backbone", ["svt-s", "pcpvt-s"])
def test_backbones_compute_what_the_projects_own_do(kind: str, backbone: str) -> None:
    weights = seeded(kind, backbone)
    if kind == "official segmentation":  # a decode head makes it a file for segmentation
        weights = {f"backbone.{key}": value for key, value in weights.items()}
        weights["decode_head.conv_seg.bias"] = torch.zeros(150)
    found, spec = recognize(weights, FILES.get(kind, "x.pth")), spec_of(backbone)

    def errors(changed: Recognized, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[float]:
        model = backbone_of(changed, spec)
        golden = GOLDEN[f"{kind} {backbone}"]
        return [error(model(image(size)), golden[f"{size[0]}x{size[1]}"]) for size in sizes]

    limit = NORM_OF_KEYS if (kind, backbone) == ("mmpretrain", "pcpvt-s") else TOLERANCE
    assert max(errors(found)) < limit
    if found.spec_changes and kind != "mmpretrain":  # the epsilon matters
        assert min(errors(replace(found, spec_changes={}), SIZES[:1])) > 1e-6
    if spec.family == "svt":  # so does the padding, where rows and columns are padded
        both, none, rows = errors(replace(found, padding={"unmasked": "parity"}.get(found.padding, "unmasked")))
        assert both > 1e-3 and none < TOLERANCE and rows < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["svt-s", "pcpvt-s"])
def test_sssegmentations_logits_are_its_own(backbone: str) -> None:
    found = recognize(seeded("sssegmentation", backbone), "x.pth")
    model = Segmentor(sssegmentation_spec(backbone), 150, padding=found.padding).eval()
    model.load_state_dict(found.state_dict)
    recorded = GOLDEN[f"sssegmentation {backbone}"][f"{SIZES[0][0]}x{SIZES[0][1]}"]
    assert error([model.double()(image(SIZES[0]))], recorded) < TOLERANCE
