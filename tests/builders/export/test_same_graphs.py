"""The 12 models' graphs are, byte for byte, those recorded in graphs.json: what moves code about changes no graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from same_graphs import exact_model, hashes, is_small, recorded

from twins_trt.builders.export.fpn import folded
from twins_trt.models import list_models

AGAIN = "graphs changed; where that is meant, record them: python tests/builders/same_graphs.py"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if is_small(name) else pytest.mark.slow) for name in list_models()]
)
def test_graphs_are_the_recorded_ones(name: str, tmp_path: Path) -> None:
    assert hashes(exact_model(name), tmp_path) == recorded()[name], AGAIN


def test_every_model_and_nothing_else_is_recorded() -> None:
    assert list(recorded()) == list_models()


@pytest.mark.parametrize("name", ["twins_svt-l_fpn", "twins_pcpvt-s_upernet"])
def test_weights_fold_without_rounding(name: str) -> None:
    """Else the hashes would be those of one processor."""
    weights = {key: value.numpy() for key, value in exact_model(name).state_dict().items()}
    for key, weight in weights.items():
        if key.endswith((".proj.weight", ".out_proj.weight")) and ".attn." in key:
            inner = key.replace("out_proj.weight", "in_proj_bias").replace(".proj.weight", ".qkv.bias")
            value_bias = weights[inner][-len(weight) :]
            exact = weight.astype(np.float64) @ value_bias
            assert np.count_nonzero(exact) > len(exact) / 2
            np.testing.assert_array_equal(weight @ value_bias, exact)
        elif key.endswith(".bn.weight"):
            module = key.removesuffix(".bn.weight")
            deviation = np.sqrt(weights[f"{module}.bn.running_var"]).round(2)  # 1, 2 or 0.5
            exact = weights[f"{module}.conv.weight"] * (weight / deviation)[:, None, None, None]
            np.testing.assert_array_equal(folded(weights, module)[0], exact)
