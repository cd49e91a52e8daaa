"""The graph computes what the model computes: all models, sizes, batches, outputs and precisions."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional

from twins_trt.builders.export import DynamicDim, ExportOptions, export_graph, read_info
from twins_trt.errors import ExportError, UsageError
from twins_trt.models import build_model, list_models
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.zoo import DEMO, IMAGENET_MEAN, IMAGENET_STD

PARITY = 1e-4  # of the logits' largest magnitude
SMALL = ("twins_pcpvt-s_fpn", "twins_svt-s_fpn", "twins_svt-s_upernet")  # every kind of block and head
# At 112×80 the first three stages of SVT need columns but no rows of padding: mmseg's mask cancels.
# At 200×333 every size is odd somewhere.
QUIRK, ODD = (112, 80), (200, 333)


@functools.lru_cache(maxsize=4)  # seeding a model takes longer than exporting it
def seeded_model(name: str, num_classes: int = 19, padding: str = "parity") -> Segmentor:
    model = build_model(name, num_classes, padding=padding)
    seed_weights(model)
    return model


def image(height: int, width: int, batch: int = 1) -> np.ndarray:
    """uint8 [batch, H, W, 3]: blocks of colour and noise."""
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 200, (batch, height // 16 + 1, width // 16 + 1, 3))
    blocks = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    return (blocks + rng.integers(0, 56, (batch, height, width, 3))).astype(np.uint8)


def run(path: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": pixels}), strict=True))


def expected(model: Segmentor, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = (torch.from_numpy(pixels).float() - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    with torch.inference_mode():
        logits = model(x.permute(0, 3, 1, 2))
        mask = functional.interpolate(logits, size=pixels.shape[1:3], mode="bilinear", align_corners=False).argmax(1)
    return logits.numpy(), mask.numpy()


def check(
    model: Segmentor, path: Path, pixels: np.ndarray, *, parity: float = PARITY, agreement: float = 0.9999
) -> None:
    got = run(path, pixels)
    logits, mask = expected(model, pixels)
    assert got["logits"].dtype == np.float32 and got["mask"].dtype == np.uint8
    assert np.abs(got["logits"] - logits).max() <= parity * np.abs(logits).max()
    assert len(np.unique(mask)) > 1  # a constant mask would agree with anything
    assert (got["mask"] == mask).mean() >= agreement


@pytest.mark.parametrize("name", [*list_models(), DEMO.name])
def test_graph_equals_model(name: str, tmp_path: Path) -> None:
    model = seeded_model(name)
    options = ExportOptions(*QUIRK, outputs=("mask", "logits"))
    info = export_graph(model, tmp_path / "g.onnx", options)
    check(model, tmp_path / "g.onnx", image(*QUIRK))
    assert read_info(tmp_path / "g.onnx") == info
    assert info.attentions == sum(model.spec.depths)


@pytest.mark.parametrize("size", [(512, 512), ODD], ids=["crop", "odd"])
@pytest.mark.parametrize("name", SMALL)
def test_graph_equals_model_at_the_crop_size_and_at_odd_sizes(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = seeded_model(name, 150)
    export_graph(model, tmp_path / "g.onnx", ExportOptions(*size, outputs=("mask", "logits")))
    check(model, tmp_path / "g.onnx", image(*size))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("opset", [17, 18, 19, 20])
def test_every_opset_passes_the_checker_and_agrees(name: str, opset: int, tmp_path: Path) -> None:
    model = seeded_model(name)
    export_graph(model, tmp_path / "g.onnx", ExportOptions(64, 96, opset=opset, outputs=("mask", "logits")))
    proto = onnx.load(tmp_path / "g.onnx")
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    onnx.checker.check_model(proto, full_check=True)
    check(model, tmp_path / "g.onnx", image(64, 96))


@pytest.mark.parametrize("name", [*SMALL, DEMO.name])
def test_graphs_for_the_cpu_agree(name: str, tmp_path: Path) -> None:
    model = seeded_model(name)
    for levels in (None, 1, 3) if model.spec.head == "upernet" else (None,):
        options = ExportOptions(64, 96, target="cpu", upernet_levels=levels, outputs=("mask", "logits"))
        export_graph(model, tmp_path / "g.onnx", options)
        check(model, tmp_path / "g.onnx", image(64, 96))


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("twins_svt-s_fpn", (32, 32), {}),  # one pixel in the last stage, one key in every GSA
        ("twins_pcpvt-s_fpn", (33, 47), {}),
        ("twins_svt-s_upernet", (32, 36), {}),  # pools of up to six bins over a 1 × 2 map
        ("twins_svt-s_upernet", (37, 32), {"target": "cpu"}),
        ("twins_svt-s_upernet", (33, 40), {"upernet_levels": 2}),
        ("twins_svt-s_fpn", (33, 40), {"target": "cpu"}),
        ("twins_pcpvt-s_fpn", (64, 72), {"target": "cpu", "batch": 2}),  # the levels' sizes double, then do not
    ],
)
def test_the_smallest_sizes(name: str, size: tuple[int, int], options: dict, tmp_path: Path) -> None:
    export_graph(seeded_model(name), tmp_path / "g.onnx", ExportOptions(*size, outputs=("mask", "logits"), **options))
    check(seeded_model(name), tmp_path / "g.onnx", image(*size, options.get("batch", 1)))


@pytest.mark.parametrize("target", ["gpu", "cpu"])
@pytest.mark.parametrize("classes", [1, 2, 255])
def test_any_number_of_classes(classes: int, target: str, tmp_path: Path) -> None:
    model = seeded_model("twins_svt-s_fpn", classes)
    info = export_graph(model, tmp_path / "g.onnx", ExportOptions(64, 32, target=target, outputs=("logits", "mask")))
    pixels = image(64, 32)
    logits, mask = expected(model, pixels)
    got = run(tmp_path / "g.onnx", pixels)
    assert list(got) == ["logits", "mask"] and info.num_classes == classes
    assert got["logits"].shape == (1, classes, 16, 8)
    assert np.abs(got["logits"] - logits).max() <= PARITY * np.abs(logits).max()
    assert (got["mask"] == mask).mean() >= 0.9999
    assert len(np.unique(mask)) == 1 if classes == 1 else len(np.unique(mask)) > 1


@pytest.mark.parametrize(("name", "target"), [*((name, "gpu") for name in SMALL), ("twins_svt-s_fpn", "cpu")])
def test_one_graph_serves_every_batch_and_size_in_its_range(name: str, target: str, tmp_path: Path) -> None:
    model = seeded_model(name)
    sides = DynamicDim(32, 224, 512)
    options = ExportOptions(sides, sides, batch=DynamicDim(1, 2, 4), target=target, outputs=("mask", "logits"))
    export_graph(model, tmp_path / "g.onnx", options)
    for size, batch in [((96, 64), 1), (QUIRK, 3), ((100, 133), 2)]:
        check(model, tmp_path / "g.onnx", image(*size, batch))


@pytest.mark.parametrize("batch", [3, DynamicDim(1, 2, 4)], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", SMALL)
def test_images_of_a_batch_do_not_mix(name: str, batch: int | DynamicDim, tmp_path: Path) -> None:
    model = seeded_model(name)
    export_graph(model, tmp_path / "g.onnx", ExportOptions(96, 128, batch=batch, outputs=("mask", "logits")))
    pixels = image(96, 128, 3)
    check(model, tmp_path / "g.onnx", pixels)
    together = run(tmp_path / "g.onnx", pixels)["logits"]
    swapped = run(tmp_path / "g.onnx", pixels[::-1].copy())["logits"]
    np.testing.assert_allclose(together, swapped[::-1], rtol=0, atol=1e-5 * np.abs(together).max())


def test_masked_padding_differs_from_parity_only_where_the_quirk_is(tmp_path: Path) -> None:
    masked, parity = seeded_model("twins_svt-s_fpn", padding="masked"), seeded_model("twins_svt-s_fpn")
    for size, differs in [(QUIRK, True), ((64, 96), False)]:
        pixels = image(*size)
        export_graph(masked, tmp_path / "g.onnx", ExportOptions(*size, outputs=("mask", "logits")))
        check(masked, tmp_path / "g.onnx", pixels)
        gap = np.abs(expected(masked, pixels)[0] - expected(parity, pixels)[0]).max()
        assert (gap > 1e-3) == differs


def test_float32_input_is_taken_as_normalized(tmp_path: Path) -> None:
    model = seeded_model("twins_svt-s_fpn")
    export_graph(model, tmp_path / "g.onnx", ExportOptions(64, 96, input="float32", outputs=("logits",)))
    x = np.random.default_rng(1).standard_normal((1, 3, 64, 96)).astype(np.float32)
    with torch.inference_mode():
        want = model(torch.from_numpy(x)).numpy()
    got = run(tmp_path / "g.onnx", x)
    assert list(got) == ["logits"]
    assert np.abs(got["logits"] - want).max() <= PARITY * np.abs(want).max()


@pytest.mark.parametrize("name", SMALL)
def test_fp16_graph_is_precision_complete_and_close(name: str, tmp_path: Path) -> None:
    model = seeded_model(name)
    info = export_graph(
        model, tmp_path / "g.onnx", ExportOptions(128, 96, precision="fp16", outputs=("mask", "logits"))
    )
    # Half precision rounds to 2^-11; a few hundred roundings in a row stay within 1 % of the largest logit.
    check(model, tmp_path / "g.onnx", image(128, 96), parity=1e-2, agreement=0.97)

    proto = onnx.load(tmp_path / "g.onnx")
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    types |= {value.name: value.data_type for value in inferred.graph.initializer}
    full = [node for node in proto.graph.node if any(types.get(name) == onnx.TensorProto.FLOAT for name in node.output)]
    allowed = set(info.islands)
    assert {node.name for node in full if node.op_type != "Cast"} <= allowed
    assert all(reason for reason in info.islands.values())
    assert not any(name.startswith(("stages.", "neck", "head")) for name in allowed)


def test_every_node_is_named_after_its_block(tmp_path: Path) -> None:
    model = seeded_model("twins_svt-s_upernet")
    export_graph(model, tmp_path / "g.onnx", ExportOptions(64, 64))
    names = [node.name for node in onnx.load(tmp_path / "g.onnx").graph.node]
    assert len(set(names)) == len(names)
    assert {name.split("/")[0].split(".")[0] for name in names} == {"input", "stages", "head", "output"}
    for stage, depth in enumerate(model.spec.depths):
        for block in range(depth):
            assert f"stages.{stage}.blocks.{block}.attn/softmax" in names
            assert f"stages.{stage}.blocks.{block}.ffn/fc1" in names


def test_layer_norm_and_gelu_stay_whole(tmp_path: Path) -> None:
    model = seeded_model("twins_pcpvt-s_fpn")
    export_graph(model, tmp_path / "g.onnx", ExportOptions(64, 64, opset=20))
    ops = [node.op_type for node in onnx.load(tmp_path / "g.onnx").graph.node]
    blocks = sum(model.spec.depths)
    reduced = blocks - model.spec.depths[3]  # the last stage's attention has no norm of its own
    assert ops.count("LayerNormalization") == 4 + 2 * blocks + reduced
    assert ops.count("Gelu") == blocks
    assert not {"BatchNormalization", "ReduceMean", "Erf", "AveragePool", "GlobalAveragePool"} & set(ops)


def test_a_written_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded_model("twins_svt-s_fpn")
    with pytest.raises(ExportError, match="cannot write"):
        export_graph(model, tmp_path / "no" / "folder" / "g.onnx", ExportOptions(64, 64))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ExportError, match="No space left"):
        export_graph(model, tmp_path / "g.onnx", ExportOptions(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = copy.deepcopy(seeded_model("twins_svt-s_fpn"))
    with torch.no_grad():
        model.decode_head.conv_seg.weight[0, 0] = 1e6
    export_graph(model, tmp_path / "g.onnx", ExportOptions(64, 64))
    for value in (1e6, float("inf"), float("nan")):
        with torch.no_grad():
            model.decode_head.conv_seg.weight[0, 0] = value
        with pytest.raises(ExportError, match="beyond float16"):
            export_graph(model, tmp_path / "h.onnx", ExportOptions(64, 64, precision="fp16"))
    assert not (tmp_path / "h.onnx").exists()


def test_reading_what_is_not_a_graph_of_ours(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ExportError, match="not a readable ONNX file"):
        read_info(tmp_path / "text.onnx")
    foreign = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match="was not exported by twins-trt"):
        read_info(tmp_path / "foreign.onnx")
    for info in ("no json", "{}", '{"options": {"height": 8, "width": 64, "batch": 1, "outputs": []}}'):
        onnx.helper.set_model_props(foreign, {"twins_trt.info": info})
        onnx.save(foreign, tmp_path / "later.onnx")
        with pytest.raises(ExportError, match="another version"):
            read_info(tmp_path / "later.onnx")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"precision": "fp8"}, "precision"),
        ({"opset": 16}, "opset"),
        ({"height": 31}, "height 31 is too small"),
        ({"width": DynamicDim(16, 64, 64), "height": DynamicDim(32, 64, 64)}, "width 16 is too small"),
        ({"height": 512.0}, "height cannot be 512.0"),
        ({"height": (32, 64, 128)}, "height cannot be"),
        ({"batch": True}, "batch cannot be True"),
        ({"width": np.int64(64)}, "width cannot be"),
        ({"outputs": "mask"}, "outputs"),
        ({"upernet_levels": 1.5}, "upernet_levels"),
        ({"batch": 0}, "batch 0"),
        ({"outputs": ()}, "outputs"),
        ({"outputs": ("mask", "mask")}, "outputs"),
        ({"upernet_levels": 4}, "upernet_levels"),
        ({"height": DynamicDim(64, 128, 256)}, "both"),
    ],
)
def test_options_that_cannot_be(fields: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ExportOptions(**fields)


def test_a_range_is_ordered() -> None:
    for numbers in ((4, 2, 8), (0, 1, 1), (1, 4, 2), (1.0, 2.0, 4.0)):
        with pytest.raises(UsageError, match="min <= opt <= max"):
            DynamicDim(*numbers)


def test_options_given_as_lists_survive_the_file(tmp_path: Path) -> None:
    options = ExportOptions(64, 64, outputs=["logits"])  # type: ignore[arg-type]
    info = export_graph(seeded_model("twins_svt-s_fpn"), tmp_path / "g.onnx", options)
    assert read_info(tmp_path / "g.onnx") == info


def test_coarse_levels_need_upernet_and_a_fixed_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="UPerNet"):
        export_graph(seeded_model("twins_svt-s_fpn"), tmp_path / "g.onnx", ExportOptions(64, 64, upernet_levels=1))


def test_options_keep_the_keys_that_graphs_and_work_folders_have() -> None:
    """Metadata of graphs and keys of work folders are made of them."""
    options = ExportOptions(64, 96, DynamicDim(1, 2, 4), target="cpu", outputs=("mask", "logits"))
    assert options.to_json() == {
        "height": 64,
        "width": 96,
        "batch": {"min": 1, "opt": 2, "max": 4},
        "precision": "fp32",
        "opset": 17,
        "input": "uint8",
        "outputs": ["mask", "logits"],
        "forms": "cpu",
        "upernet_levels": None,
    }
