"""Graphs of models that are none of the zoo's: other widths, epsilons, paddings, preprocessing, a head of one logit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_models import OWN, SVT, binary_model, image, model_of, reference

from twins_trt.builders.export import DynamicDim, ExportOptions, GraphInfo, export_graph, read_info
from twins_trt.data.preprocessing import Preprocessing, normalized_planes
from twins_trt.errors import UsageError
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.zoo import PADDINGS

PARITY = 1e-5  # of the logits' largest magnitude
ALL = ("mask", "logits", "probability")
SIZES = {"fixed": (64, 96), "odd": (61, 75), "quirk": (112, 80)}  # quirk: columns are padded and rows are not


def run(path: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": pixels}), strict=True))


def check(model: Segmentor, path: Path, pixels: np.ndarray, *, parity: float = PARITY, agreement: float = 1) -> None:
    got = run(path, pixels)
    logits, wanted = reference(model, pixels)
    assert np.abs(got["logits"] - logits).max() <= parity * np.abs(logits).max()
    assert len(np.unique(wanted["mask"])) > 1
    assert got["mask"].dtype == np.uint8 and (got["mask"] == wanted["mask"]).mean() >= agreement
    if model.threshold is not None:
        assert got["probability"].dtype == np.float32 and got["probability"].shape == wanted["probability"].shape
        assert np.abs(got["probability"] - wanted["probability"]).max() <= parity


@pytest.mark.parametrize("target", ["gpu", "cpu"])
@pytest.mark.parametrize("name", OWN)
def test_own_widths(name: str, target: str, tmp_path: Path) -> None:
    model = model_of(OWN[name])
    for size in SIZES.values():
        info = export_graph(model, tmp_path / "g.onnx", ExportOptions(*size, target=target, outputs=("mask", "logits")))
        check(model, tmp_path / "g.onnx", image(*size))
        assert info.attentions == sum(model.spec.depths)


@pytest.mark.parametrize("name", ["odd dims", "other depths, ratios and reductions", "pcpvt", "odd upernet"])
def test_own_widths_at_any_size_and_batch(name: str, tmp_path: Path) -> None:
    model = model_of(OWN[name])
    sides = DynamicDim(32, 64, 128)
    options = ExportOptions(sides, sides, batch=DynamicDim(1, 2, 4), outputs=("mask", "logits"))
    export_graph(model, tmp_path / "g.onnx", options)
    for size, batch in zip(SIZES.values(), (1, 3, 2), strict=True):
        check(model, tmp_path / "g.onnx", image(*size, batch))


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_coarse_levels_of_a_narrow_upernet(target: str, levels: int, tmp_path: Path) -> None:
    model = model_of(OWN["odd upernet"])
    options = ExportOptions(64, 96, target=target, upernet_levels=levels, outputs=("mask", "logits"))
    export_graph(model, tmp_path / "g.onnx", options)
    check(model, tmp_path / "g.onnx", image(64, 96))


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_few_classes(target: str, classes: int, tmp_path: Path) -> None:
    model = model_of(SVT, classes)
    export_graph(model, tmp_path / "g.onnx", ExportOptions(64, 96, target=target, outputs=("mask", "logits")))
    logits, wanted = reference(model, image(64, 96))
    got = run(tmp_path / "g.onnx", image(64, 96))
    assert np.abs(got["logits"] - logits).max() <= PARITY * np.abs(logits).max()
    assert np.array_equal(got["mask"], wanted["mask"])


def test_every_layer_norm_has_its_own_eps(tmp_path: Path) -> None:
    spec = replace(SVT, norm_eps=1e-5, block_norm_eps=1e-6)
    export_graph(model_of(spec), tmp_path / "g.onnx", ExportOptions(64, 64))
    eps: dict[str, set[float]] = {}
    for node in onnx.load(tmp_path / "g.onnx").graph.node:
        if node.op_type == "LayerNormalization":
            value = next(each.f for each in node.attribute if each.name == "epsilon")
            scope, _, name = node.name.rpartition("/")
            eps.setdefault(f"{scope.rpartition('.')[2]}/{name}", set()).add(round(value, 9))
    assert eps == {
        "patch_embed/norm": {1e-5},
        "attn/sr_norm": {1e-5},
        "attn/norm1": {1e-6},
        "ffn/norm2": {1e-6},
        "norm/norm": {1e-6},
    }


@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_padded_keys_as_each_padding_has_them(target: str, tmp_path: Path) -> None:
    masks = {}
    for padding in PADDINGS:
        model = biased(padding)
        for size in SIZES.values():
            options = ExportOptions(*size, target=target, outputs=("mask", "logits"))
            info = export_graph(model, tmp_path / "g.onnx", options)
            assert info.padding == padding == read_info(tmp_path / "g.onnx").padding
            check(model, tmp_path / "g.onnx", image(*size))
            masks[padding, size] = run(tmp_path / "g.onnx", image(*size))["mask"]
    for size, alike in ((SIZES["fixed"], "masked"), (SIZES["quirk"], "unmasked")):
        others = [each for each in PADDINGS if each not in ("parity", alike)]
        assert not any(np.array_equal(masks["parity", size], masks[each, size]) for each in others)


def test_padded_keys_that_take_part_at_any_size(tmp_path: Path) -> None:
    model = biased("unmasked")
    sides = DynamicDim(32, 64, 128)
    options = ExportOptions(sides, sides, batch=DynamicDim(1, 2, 4), outputs=("mask", "logits"))
    export_graph(model, tmp_path / "g.onnx", options)
    for size, batch in zip(SIZES.values(), (1, 3, 2), strict=True):
        check(model, tmp_path / "g.onnx", image(*size, batch))


def biased(padding: str) -> Segmentor:
    """With biases that a padded key is seen by."""
    model = model_of(SVT, padding=padding)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("qkv.bias"):
                value += torch.randn(value.shape, generator=generator)
    return model


GREY = Preprocessing(mean=(0, 0, 0), std=(255, 255, 255), channels="bgr")
CAFFE = Preprocessing(mean=(103.5, 116.3, 123.7), std=(1, 1, 1), channels="bgr")  # of blue, green and red
OWN_RGB = Preprocessing(mean=(10, 120, 200), std=(20, 60, 110))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("preprocessing", [GREY, CAFFE, OWN_RGB], ids=["bgr", "bgr with means", "own rgb"])
def test_pixels_are_normalized_as_the_model_says(preprocessing: Preprocessing, precision: str, tmp_path: Path) -> None:
    model = model_of(SVT, preprocessing=preprocessing)
    options = ExportOptions(64, 96, precision=precision, outputs=("mask", "logits"))
    info = export_graph(model, tmp_path / "g.onnx", options)
    exact = precision == "fp32"
    check(model, tmp_path / "g.onnx", image(64, 96), parity=PARITY if exact else 0.02, agreement=1 if exact else 0.98)
    assert (info.mean, info.std, info.channels) == (
        preprocessing.mean,
        preprocessing.std,
        preprocessing.channels,
    )
    assert read_info(tmp_path / "g.onnx") == info
    plain = model_of(SVT)
    assert not np.array_equal(reference(plain, image(64, 96))[1]["mask"], reference(model, image(64, 96))[1]["mask"])


def test_planes_come_in_the_order_of_the_network(tmp_path: Path) -> None:
    model = model_of(SVT, preprocessing=CAFFE)
    export_graph(model, tmp_path / "g.onnx", ExportOptions(64, 96, input="float32", outputs=("mask", "logits")))
    planes = normalized_planes(image(64, 96)[0], CAFFE)[None]
    logits, wanted = reference(model, image(64, 96))
    got = run(tmp_path / "g.onnx", planes)
    assert np.abs(got["logits"] - logits).max() <= PARITY * np.abs(logits).max()
    assert np.array_equal(got["mask"], wanted["mask"])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_a_head_of_one_logit(target: str, threshold: float, tmp_path: Path) -> None:
    model = binary_model(threshold)
    for size in SIZES.values():
        info = export_graph(model, tmp_path / "g.onnx", ExportOptions(*size, target=target, outputs=ALL))
        check(model, tmp_path / "g.onnx", image(*size))
    assert (info.num_classes, info.threshold) == (2, threshold)
    assert read_info(tmp_path / "g.onnx") == info


def test_a_head_of_one_logit_at_any_size_and_batch(tmp_path: Path) -> None:
    sides = DynamicDim(32, 64, 128)
    for target in ("gpu", "cpu"):
        options = ExportOptions(sides, sides, batch=DynamicDim(1, 2, 4), target=target, outputs=ALL)
        export_graph(binary_model(), tmp_path / "g.onnx", options)
        for size, batch in zip(SIZES.values(), (1, 3, 2), strict=True):
            check(binary_model(), tmp_path / "g.onnx", image(*size, batch))


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_a_head_of_one_logit_in_float16_is_compared_in_float32(threshold: float, tmp_path: Path) -> None:
    model = binary_model(threshold)
    export_graph(model, tmp_path / "g.onnx", ExportOptions(64, 96, precision="fp16", outputs=ALL))
    check(model, tmp_path / "g.onnx", image(64, 96), parity=0.02, agreement=0.98)
    # What the graph gives is consistent: the mask is its own probability against the threshold, save for ties.
    got = run(tmp_path / "g.onnx", image(64, 96))
    near = np.abs(got["probability"] - threshold) < 1e-4
    assert np.array_equal(got["mask"][~near], (got["probability"] > threshold)[~near]) and near.mean() < 0.01


def test_one_output_alone_is_the_probability(tmp_path: Path) -> None:
    export_graph(binary_model(), tmp_path / "g.onnx", ExportOptions(64, 96, outputs=("probability",)))
    got = run(tmp_path / "g.onnx", image(64, 96))
    assert list(got) == ["probability"]
    assert np.abs(got["probability"] - reference(binary_model(), image(64, 96))[1]["probability"]).max() <= PARITY


def test_softmax_has_no_single_probability(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="only a head with one logit has a probability, and that of twins_svt-custom_fpn"
    ):
        export_graph(model_of(SVT), tmp_path / "g.onnx", ExportOptions(64, 96, outputs=("probability",)))
    assert not (tmp_path / "g.onnx").exists()


def test_facts_that_hold_the_default_are_left_out_and_graphs_without_them_read(tmp_path: Path) -> None:
    info = export_graph(model_of(SVT), tmp_path / "g.onnx", ExportOptions(64, 96))
    earlier = {"model", "num_classes", "padding", "attentions", "options", "islands"}
    assert set(json.loads(info.to_json())) == earlier
    assert read_info(tmp_path / "g.onnx") == info == GraphInfo.from_json(info.to_json())
    assert (info.threshold, info.channels) == (None, "rgb")
    binary = replace(info, threshold=0.25, channels="bgr", mean=(1.0, 2.0, 3.0))
    assert set(json.loads(binary.to_json())) - earlier == {"threshold", "channels", "mean"}
    assert GraphInfo.from_json(binary.to_json()) == binary
