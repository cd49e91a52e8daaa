from __future__ import annotations

from pathlib import Path

import numpy as np
from commands import MODEL, SMALL, Twins

from twins_trt.builders.export import DynamicDim, read_info
from twins_trt.models import build_model


def test_the_graph_computes_what_the_checkpoints_model_computes(twins: Twins, checkpoint: Path, tmp_path: Path) -> None:
    import onnxruntime
    import torch

    out = tmp_path / "graph.onnx"
    words = ("--precision", "fp32", "--input", "float32", "--outputs", "logits", "--size", "64x96", "--target", "cpu")
    ran = twins("export", MODEL, "--checkpoint", checkpoint, *words, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["size"] == out.stat().st_size
    assert ran.json["info"]["num_classes"] == 4 and ran.json["source"]["checkpoint"] == checkpoint.name
    pixels = np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(str(out)).run(None, {"image": pixels})
    with torch.inference_mode():
        expected = build_model(MODEL, 4, checkpoint)(torch.from_numpy(pixels)).numpy()
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_options_reach_the_graph(twins: Twins, tmp_path: Path) -> None:
    out = tmp_path / "graph.onnx"
    size = ("--size", "64:96:128x64", "--batch", "1:2:4")
    mixed = twins("export", MODEL, "--seeded", "--num-classes", "4", *size, "--out", out)
    assert mixed.code == 2 and "both" in mixed.err and not out.exists()
    words = ("--size", "64:96:128", "--batch", "1:2:4", "--opset", "18", "--padding", "masked", "--precision", "fp32")
    ran = twins("export", MODEL, "--seeded", "--num-classes", "4", *words, "--out", out)
    assert ran.code == 0, ran.err
    info = read_info(out)
    assert info.options.height == info.options.width == DynamicDim(64, 96, 128)
    assert (info.options.batch, info.options.opset, info.padding) == (DynamicDim(1, 2, 4), 18, "masked")


def test_a_dry_run_writes_nothing(twins: Twins, tmp_path: Path) -> None:
    out = tmp_path / "graph.onnx"
    ran = twins("export", MODEL, "--seeded", *SMALL, "--out", out, "--dry-run", "--json")
    assert ran.code == 0 and ran.json["dry_run"] is True
    assert ran.json["options"]["height"] == 64 and ran.json["options"]["precision"] == "fp16"
    assert not out.exists()


def test_seeded_graphs_are_the_same_bytes_every_time(twins: Twins, tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        assert twins("export", MODEL, "--seeded", *SMALL, "--out", tmp_path / name).code == 0
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_a_dry_run_refuses_what_the_model_cannot_give(twins: Twins, tmp_path: Path) -> None:
    words = ("--seeded", "--size", "64x96", "--out", tmp_path / "g.onnx", "--dry-run")
    for more, cause in (
        (("--outputs", "probability"), "only a head with one logit has a probability"),
        (("--upernet-levels", "2"), "--upernet-levels needs a UPerNet head"),
    ):
        ran = twins("export", MODEL, *words, *more)
        assert ran.code == 2 and cause in ran.err
        build = twins("build", MODEL, *words[:-3], "--out", tmp_path / "x.bundle", "--dry-run", *more)
        assert build.code == 2 and cause in build.err
