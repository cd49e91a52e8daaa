from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import MODEL, Twins

from twins_trt.models.checkpoint import sha256_of
from twins_trt.runtime import open_bundle, write_bundle
from twins_trt.runtime.manifest import AwaitedEngine


def test_a_bundle_shows_its_manifest_and_audit(twins: Twins, bundle: Path) -> None:
    for path in (bundle, bundle / "manifest.json"):
        ran = twins("inspect", path, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["kind"] == "bundle" and ran.json["verified"] is True
        assert ran.json["manifest"] == json.loads((bundle / "manifest.json").read_text())
        assert ran.json["audit"] == json.loads((bundle / "audit.json").read_text())
    text = twins("inspect", bundle).out
    assert "image uint8 [1, 64, 96, 3]" in text and "sky, road, tree, car" in text
    assert "attentions fused  18 of 18" in text
    assert open_bundle(bundle).manifest.rebuild in text


def test_a_graph_shows_what_it_carries(twins: Twins, bundle: Path) -> None:
    ran = twins("inspect", bundle / "graph.onnx", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["kind"], ran.json["info"]["model"], ran.json["header"]["opset"]) == ("graph", MODEL, 17)
    assert ran.json["header"]["operators"]["LayerNormalization"] > 40
    assert ran.json["header"]["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [1, 64, 96, 3]}]
    assert "twins_svt-s_fpn, 4 classes, padding parity" in twins("inspect", bundle / "graph.onnx").out


def test_a_graph_is_compiled_and_audited(twins: Twins, bundle: Path) -> None:
    """The audit equals the bundle's, which the same compiler made for two of these targets."""
    ran = twins("inspect", bundle / "graph.onnx", "--target", "rtx-4090,120", "--layers", "--json")
    assert ran.code == 0, ran.err
    (built,) = json.loads((bundle / "audit.json").read_text())["engines"]
    assert ran.json["audit"] == built["audit"]
    assert ran.json["audit"]["attentions"] == ran.json["audit"]["expected_attentions"] == 18
    assert len(ran.json["layers"]) >= ran.json["audit"]["kernels"]
    shown = twins("inspect", bundle / "graph.onnx", "--target", "sm_89", "--layers").out
    assert "attentions fused  18 of 18" in shown and "\n  0 " in shown


def test_only_graphs_are_compiled(twins: Twins, bundle: Path) -> None:
    ran = twins("inspect", bundle, "--target", "sm_89")
    assert ran.code == 2 and "is no graph to compile" in ran.err
    ran = twins("inspect", bundle / "graph.onnx", "--target", "sm_89", "--shapes", "image:1x2")
    assert ran.code == 2 and "is no profile" in ran.err


def test_a_foreign_graph_is_said_to_be_one(twins: Twins, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "g.onnx")
    ran = twins("inspect", tmp_path / "g.onnx", "--json")
    assert ran.code == 0 and ran.json["info"] is None and ran.json["header"]["operators"] == {"Relu": 1}
    assert "not known: twins-trt did not export it" in twins("inspect", tmp_path / "g.onnx").out


def test_a_checkpoint_shows_what_it_holds(twins: Twins, checkpoint: Path) -> None:
    ran = twins("inspect", checkpoint, "--json")
    assert ran.code == 0, ran.err
    record = ran.json
    assert (record["kind"], record["model"], record["num_classes"], record["origin"]) == (
        "checkpoint",
        MODEL,
        4,
        "mmseg",
    )
    assert record["classes"] == ["sky", "road", "tree", "car"] and record["meta"]["iter"] == 7
    assert record["sha256"] == sha256_of(checkpoint)
    assert f"{MODEL}, 4 classes" in twins("inspect", checkpoint).out
    assert record["conventions"]["mean"] == {"value": "123.675,116.28,103.53", "origin": "assumed"}
    assert record["conventions"]["depths"] == {"value": "2,2,10,4", "origin": "weights"}
    assert record["conventions"]["classes"] == {"value": "sky, road, tree, car", "origin": "file (CLASSES)"}


def test_a_backbone_and_something_else(twins: Twins, checkpoint: Path, tmp_path: Path) -> None:
    import torch

    official = tmp_path / "official.pth"
    assert twins("convert", checkpoint, official).code == 0
    state = torch.load(official, weights_only=True)["state_dict"]
    torch.save({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}, official)
    record = twins("inspect", official, "--json").json
    assert (record["model"], record["backbone"], record["origin"]) == (None, "twins_svt-s", "official")
    torch.save({"weight": torch.zeros(3, 4)}, tmp_path / "other.pth")
    record = twins("inspect", tmp_path / "other.pth", "--json").json
    assert (record["model"], record["fits"], record["parameters"]) == (None, False, 12)
    assert "does not fit" in twins("inspect", tmp_path / "other.pth").out


NEW = """
data_preprocessor = dict(bgr_to_rgb=False, mean=[1, 2, 3], std=[4, 5, 6], size=(64, 96), type='SegDataPreProcessor')
model = dict(
    backbone=dict(num_heads=[2, 4, 8, 16], type='SVT', windiow_sizes=[7, 7, 7, 7]),
    decode_head=dict(align_corners=False, ignore_index=254, num_classes=4, type='FPNHead'),
    test_cfg=dict(crop_size=(64, 96), mode='slide', stride=(32, 48)),
    type='EncoderDecoder')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(2048, 512), type='Resize'),
    dict(reduce_zero_label=True, type='LoadAnnotations'),
]
"""
OLD = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(type='EncoderDecoder', decode_head=dict(type='FPNHead', norm_cfg=norm_cfg), test_cfg=dict(mode='whole'))
img_norm_cfg = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=False)
crop_size = (64, 96)
train_pipeline = [dict(type='LoadAnnotations', reduce_zero_label=True), dict(type='RandomCrop', crop_size=crop_size)]
test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(2048, 512), transforms=[
    dict(type='Resize', keep_ratio=True), dict(type='Normalize', **img_norm_cfg)])]
"""


@pytest.mark.parametrize(("key", "text"), [("cfg", NEW), ("config", OLD)], ids=["mmseg 1.x", "mmseg 0.x"])
def test_what_the_configuration_says_is_shown_with_its_place(
    twins: Twins, checkpoint: Path, tmp_path: Path, key: str, text: str
) -> None:
    import torch

    content = torch.load(checkpoint, weights_only=True)
    content["meta"] = {key: text, **content["meta"]}
    torch.save(content, tmp_path / "x.pth")
    said = twins("inspect", tmp_path / "x.pth", "--json").json["conventions"]
    new = key == "cfg"
    mode = ("slide:64x96:32x48", "file (model.test_cfg)") if new else ("whole", "file (model.test_cfg)")
    steps = "data_preprocessor" if new else "test_pipeline.0.transforms.1"
    zero = "test_pipeline.2" if new else "train_pipeline.0"
    resize = "test_pipeline.1" if new else "test_pipeline.0.transforms.0"
    wanted = {
        "mean": ("1,2,3", f"file ({steps}.mean)"),
        "std": ("4,5,6", f"file ({steps}.std)"),
        "channels": ("bgr", f"file ({steps}.{'bgr_to_rgb' if new else 'to_rgb'})"),
        "test_scale": ("2048x512", "file (test_pipeline.1.scale)" if new else "file (test_pipeline.0.img_scale)"),
        "keep_ratio": ("true", f"file ({resize}.keep_ratio)"),
        "reduce_zero_label": ("true", f"file ({zero}.reduce_zero_label)"),
        "ignore_index": ("254", "file (model.decode_head.ignore_index)") if new else ("255", "default"),
        "train_size": ("64x96", f"file ({'data_preprocessor.size' if new else 'train_pipeline.1.crop_size'})"),
        "test_mode": mode,
        "padding": ("parity", "default"),
        "classes": ("sky, road, tree, car", "file (CLASSES)"),
        "num_heads": ("2,4,8,16", "file (model.backbone.num_heads)" if new else "default"),
    }
    assert {name: (said[name]["value"], said[name]["origin"]) for name in wanted} == wanted
    shown = twins("inspect", tmp_path / "x.pth", "--convention", "mean=0,0,0")
    assert "0,0,0" in shown.out and "although the file says 1,2,3" in shown.err


def test_a_bundle_that_awaits_its_engine_says_so_and_whose_audit_it_has(
    twins: Twins, bundle: Path, tmp_path: Path
) -> None:
    """A bundle of an awaiting build, put together from one with an engine."""
    built = open_bundle(bundle)
    audits = built.read_json("audit.json")
    audits["engines"][0] |= {"file": None, "targets": ["sm_86"], "stands_for": ["sm_87"]}
    audits["not_audited"] = {"sm_90": "it was not to be"}
    awaits = (AwaitedEngine("sm_87", "jetson-orin", "10.3"), AwaitedEngine("sm_90"))
    manifest = replace(built.manifest, engines=(), awaits=awaits)
    files = {"graph.onnx": built.graph, "audit.json": json.dumps(audits).encode()}
    write_bundle(tmp_path / "x.bundle", manifest, files)
    ran = twins("inspect", tmp_path / "x.bundle")
    assert ran.code == 0, ran.err
    assert "engine     on the device: jetson-orin (sm_87, TensorRT 10.3); twins-trt compile makes it there\n" in ran.out
    assert "           on the device: sm_90, its TensorRT; twins-trt compile makes it there\n" in ran.out
    assert "\naudit of sm_86, the nearest architecture, in place of sm_87; this engine did not ship\n" in ran.out
    assert "\nnothing audited in place of sm_90: it was not to be" in ran.out
    as_json = twins("inspect", tmp_path / "x.bundle", "--json").json
    assert as_json["manifest"]["awaits"][0] == {"target": "sm_87", "device": "jetson-orin", "tensorrt": "10.3"}
    assert as_json["audit"] == audits


def test_an_engine_that_also_stands_for_a_device_is_said_to(twins: Twins, bundle: Path, tmp_path: Path) -> None:
    built = open_bundle(bundle)
    audits = built.read_json("audit.json")
    audits["engines"][0] |= {"stands_for": ["sm_90"]}
    files = {name: built.file(name) for name in built.files}
    write_bundle(tmp_path / "x.bundle", built.manifest, {**files, "audit.json": json.dumps(audits).encode()})
    (engine,) = built.manifest.engines
    said = f"audit of {engine.file}, also in place of sm_90, whose nearest architecture it is for\n"
    assert said in twins("inspect", tmp_path / "x.bundle").out


def test_a_packed_bundle_is_not_taken_for_a_checkpoint(twins: Twins, bundle: Path, tmp_path: Path) -> None:
    tar = tmp_path / "my road.tar"
    assert twins("export-to", "device", bundle, "--out", tar).code == 0
    ran = twins("inspect", tar)
    assert ran.code == 1 and "is a packed bundle" in ran.err and f"fix: twins-trt compile '{tar}'\n" in ran.err
    ran = twins("build", tar, "--out", tmp_path / "y.bundle")
    assert ran.code == 2 and "is a bundle, and a build needs a model" in ran.err and f"compile '{tar}'\n" in ran.err
