"""ImageNet files of the official repository, timm and mmpretrain: backbones for training, and no models to build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.origins import Shapes, mmpretrain_shapes, official_shapes
from twins_trt.errors import CheckpointError
from twins_trt.models import build_model, get_spec
from twins_trt.models.convert import convert_state_dict
from twins_trt.models.examine import examine
from twins_trt.models.seeded import seeded_array
from twins_trt.training.run.start import read_start

DEMO = get_spec("twins_svt-demo_fpn")
CONFIG = """
model = dict(type='ImageClassifier',
             backbone=dict(type='SVT', arch='small', qkv_bias=True, norm_after_stage=[False, False, False, True]),
             neck=dict(type='GlobalAveragePooling'),
             head=dict(type='LinearClsHead', num_classes=1000, in_channels=128))
data_preprocessor = dict(num_classes=1000, mean=[120.0, 110.0, 100.0], std=[60.0, 61.0, 62.0], to_rgb=True)
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=248, edge='short'),
                 dict(type='CenterCrop', crop_size=224), dict(type='PackInputs')]
"""


def seeded(shapes: Shapes) -> dict[str, Tensor]:
    return {key: torch.from_numpy(seeded_array(key, shape)) for key, shape in shapes.items()}


OFFICIAL = seeded(official_shapes(DEMO, classifier=True, norm_list=False))
MMPRETRAIN = seeded(mmpretrain_shapes(DEMO))
FILES: dict[str, Any] = {
    "alt_gvt.pth": {"model": OFFICIAL, "epoch": 299},
    "twins_svt_small.pth": OFFICIAL,
    "mmpretrain.pth": {"state_dict": MMPRETRAIN, "meta": {"cfg": CONFIG, "dataset_meta": {"classes": ("tench",)}}},
}
TOLD = {  # padding, epsilon of blocks, mean
    "alt_gvt.pth": ("parity", 1e-6, (123.675, 116.28, 103.53)),
    "twins_svt_small.pth": ("unmasked", 1e-6, (123.675, 116.28, 103.53)),
    "mmpretrain.pth": ("parity", 1e-5, (120.0, 110.0, 100.0)),
}


@pytest.fixture
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.save(FILES[request.param], tmp_path / request.param)
    return tmp_path / request.param


every = pytest.mark.parametrize("path", FILES, indirect=True)


@every
def test_a_build_is_told_that_the_head_is_missing(path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds the backbone twins_svt-demo without a head") as raised:
        examine(path)
    assert f"twins-trt train twins_svt-demo_fpn --checkpoint {path}" in (raised.value.fix or "")


@every
def test_training_starts_from_it_as_its_project_computes(path: Path) -> None:
    start = read_start(path, model="twins_svt-demo_fpn", padding=None, weights="auto", conventions={})
    padding, eps, mean = TOLD[path.name]
    assert (start.num_classes, start.conventions.padding) == (None, padding)
    assert (start.spec.block_norm_eps, start.spec.norm_eps) == (eps, 1e-5)
    preprocessing = start.conventions.preprocessing
    assert (preprocessing.mean, preprocessing.channels) == (mean, "rgb")
    if path.name == "mmpretrain.pth":
        fc1 = MMPRETRAIN["backbone.stages.2.1.ffn.layers.0.0.weight"]
    else:
        fc1 = OFFICIAL["blocks.2.1.mlp.fc1.weight"]
    assert torch.equal(start.state_dict["backbone.layers.2.1.ffn.layers.0.0.weight"], fc1)


@pytest.mark.parametrize("project", ["mmsegmentation", "official"])
def test_safetensors_hold_whole_models(project: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = build_model(DEMO.name).state_dict()
    written = state if project == "mmsegmentation" else convert_state_dict(state).state_dict
    save_file({key: value.contiguous() for key, value in written.items()}, tmp_path / "model.safetensors")
    found = examine(tmp_path / "model.safetensors")
    assert (found.spec.name, found.source.origin) == (DEMO.name, "mmseg" if project == "mmsegmentation" else "official")
    assert found.conventions.padding == "parity"
    assert set(found.state_dict) == set(state)
    assert all(torch.equal(found.state_dict[key], value) for key, value in state.items())
