"""Layers of our graphs find their block, whatever a runtime made of their names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from twins_trt.profiling.layers import in_blocks, profile_layers
from twins_trt.profiling.results import Layer
from twins_trt.runtime.engines import LayerTime


def blocks(*layers: LayerTime | str) -> list[str | None]:
    named = [layer if isinstance(layer, LayerTime) else LayerTime(layer, 1.0) for layer in layers]
    return [layer.block for layer in in_blocks(named)]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("stages.2.blocks.4.ffn/fc1/MatMulAddFusion", "stages.2.blocks.4.ffn"),
        ("stages.0.patch_embed/projection_nchwc", "stages.0.patch_embed"),
        ("stages.1.pos/proj_nchwc", "stages.1.pos"),
        ("neck/conv.0.phase.11_nchwc", "neck"),
        ("head/scale.3.0.up_nchwc", "head"),
        ("input/mean", "input"),
        ("output/argmax", "output"),
        ("PWN(stages.0.blocks.0.attn/scale)", "stages.0.blocks.0.attn"),
        ("{ForeignNode[stages.3.blocks.1.attn/q...stages.3.blocks.1.attn/proj]}", "stages.3.blocks.1.attn"),
        ("/segmentor/decode_head/conv_seg/Conv", None),
        ("__myl_MulCast_myl0_12", None),
    ],
)
def test_a_name_tells_its_block(name: str, block: str | None) -> None:
    assert blocks(name) == [block]


def test_graph_nodes_tell_more_than_the_name() -> None:
    assert blocks(LayerTime("__myl_Fc_myl0_3", 1.0, "gemm", ("stages.0.blocks.1.ffn/fc1", "head/x"))) == [
        "stages.0.blocks.1.ffn"
    ]


def test_what_the_runtime_made_up_belongs_to_what_ran_before() -> None:
    order = ("ReorderInput", "stages.0.blocks.0.ffn/fc1", "Gelu_token_396", "ReorderOutput", "neck/map", "Gelu")
    ffn = "stages.0.blocks.0.ffn"
    assert blocks(*order) == [None, ffn, ffn, ffn, "neck", "neck"]


class Inspected:
    """An engine of TensorRT's: times by the compiler's names, nodes by its inspector."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def profile_layers(self, image: object, *, runs: int = 10) -> tuple[LayerTime, ...]:
        return LayerTime("__myl_Fc_myl0_3", 0.5), LayerTime("Reformatting CopyNode", 0.25)

    def inspect_layers(self) -> str:
        return self.answer


def test_the_compilers_inspector_names_the_nodes() -> None:
    layer = {
        "Name": "__myl_Fc_myl0_3",
        "LayerType": "gemm",
        "Metadata": "[ONNX Layer: stages.1.blocks.0.ffn/fc1]\x1e[ONNX Layer: stages.1.blocks.0.ffn/gelu]",
    }
    image = np.zeros((1, 8, 8, 3), np.uint8)
    found = profile_layers(Inspected(json.dumps({"Layers": [layer], "Bindings": []})), image, runs=1)
    assert found == (
        Layer("__myl_Fc_myl0_3", "gemm", 0.5, "stages.1.blocks.0.ffn"),
        Layer("Reformatting CopyNode", "", 0.25, "stages.1.blocks.0.ffn"),
    )
    bare = profile_layers(Inspected(json.dumps({"Layers": ["__myl_Fc_myl0_3"], "Bindings": []})), image, runs=1)
    assert [each.block for each in bare] == [None, None]


def test_times_and_operators_stay() -> None:
    (layer,) = in_blocks([LayerTime("head/a", 1.2345678, "Conv")])
    assert (layer.name, layer.operator, layer.milliseconds) == ("head/a", "Conv", 1.23457)
