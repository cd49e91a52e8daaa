"""The 12 models against mmsegmentation's, on this package's own seeded weights; the zoo; both padding semantics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import held

import twins_trt
from tests.models.make_golden import SIZES, pixels, sample
from twins_trt.errors import UsageError
from twins_trt.kernels.gsa import gsa_reference
from twins_trt.kernels.lsa import lsa_reference
from twins_trt.models import build_model, get_spec, list_models
from twins_trt.models.fetch import cached_path
from twins_trt.models.seeded import seed_weights

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


@pytest.mark.parametrize("name", list_models())
def test_matches_mmsegmentation(name: str) -> None:
    model = build_model(name)
    assert sum(p.numel() for p in model.parameters()) == GOLDEN[name]["parameters"]
    assert len(model.state_dict()) == GOLDEN[name]["keys"]
    seed_weights(model)
    for height, width in SIZES:
        want = GOLDEN[f"{name}@{height}x{width}"]
        with torch.inference_mode():
            logits = model(torch.from_numpy(pixels(height, width))).numpy()
        assert list(logits.shape) == want["shape"]
        np.testing.assert_allclose(sample(logits), want["samples"], rtol=0, atol=1e-4 * want["absmax"])


@pytest.mark.shared
def test_zoo_is_the_published_table(shared: Path) -> None:
    table = json.loads((shared / "data" / "zoo.json").read_text())["models"]
    assert {row["name"] for row in table} == set(list_models())
    for row in table:
        spec = get_spec(row["name"])
        for field in ("schedule_iterations", "memory_gb", "fps", "miou", "miou_ms_flip", "weights_url", "weights_file"):
            assert getattr(spec, field) == row[field], (spec.name, field)
        assert list(spec.crop_size) == row["crop_size"]
        assert spec.weights_sha256_prefix == row["weights_sha256_prefix"]
        if spec.name != "twins_svt-l_upernet":  # the page links this one to PCPVT-L's file
            assert spec.config == row["config"]


def test_zoo_is_consistent() -> None:
    assert len(list_models()) == 12 == len(set(list_models()))
    for spec in map(get_spec, list_models()):
        assert spec.name == f"twins_{spec.family}-{spec.variant}_{spec.head}"
        assert all(dim % heads == 0 for dim, heads in zip(spec.embed_dims, spec.num_heads, strict=True))
        assert spec.weights_url.endswith(f"{spec.weights_sha256_prefix}.pth")
        assert spec.miou_ms_flip > spec.miou > 0


def test_the_demo_is_no_published_model() -> None:
    spec = get_spec("twins_svt-demo_fpn")
    assert spec.name not in list_models() and spec.name == f"twins_{spec.family}-{spec.variant}_{spec.head}"
    assert [dim // heads for dim, heads in zip(spec.embed_dims, spec.num_heads, strict=True)] == [32] * 4
    model = build_model(spec.name, spec.num_classes)
    assert held(model.state_dict()) == (spec.name, 8)
    assert 2 * sum(p.numel() for p in model.parameters()) < 5e6  # bytes as float16: it ships with the package
    with pytest.raises(UsageError, match="comes with the package"):
        cached_path(spec.name)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: get_spec("twins_svt-s_upernte"), "twins_svt-s_upernet"),
        (lambda: build_model("twins_svt-s_fpn", 0), "num_classes"),
        (lambda: build_model("twins_svt-s_fpn", 256), "num_classes"),
        (lambda: build_model("twins_svt-s_fpn", "19"), "num_classes"),
        (lambda: build_model(None), "no model is named"),
        (lambda: build_model("twins_svt-s_fpn", padding="zero"), "padding"),
        (lambda: twins_trt.build_model("segformer"), "no model called"),
    ],
)
def test_wrong_arguments_are_named(call, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call()


@pytest.mark.parametrize("name", ["twins_pcpvt-s_fpn", "twins_svt-s_fpn", "twins_svt-s_upernet"])
def test_the_smallest_image(name: str) -> None:
    """Below 29 pixels stage 1's map is smaller than the 8 × 8 positions that GSA makes one key of."""
    model = build_model(name, 3)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 29, 33)).shape == (1, 3, 8, 9)
        for shape in ((1, 3, 28, 64), (1, 3, 64, 28), (3, 64, 64), (1, 4, 64, 64)):
            for forward in (model, model.forward_features):
                with pytest.raises(UsageError, match=re.escape(str(list(shape)))):
                    forward(torch.zeros(shape))


def test_a_class_count_from_numpy_will_do() -> None:
    model = build_model("twins_svt-s_fpn", np.int64(5))  # type: ignore[arg-type]
    assert model.num_classes == 5 and type(model.num_classes) is int


def naive_lsa(qkv: np.ndarray, bias: np.ndarray, heads: int, window: int, *, masked: bool) -> np.ndarray:
    """LSA of one image, one window and one head at a time. qkv: [H, W, 3C]."""
    height, width, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    d = channels // heads
    out = np.zeros((height, width, channels))
    for top in range(0, height, window):
        for left in range(0, width, window):
            cells = [(y, x) for y in range(top, top + window) for x in range(left, left + window)]
            inside = [(y, x) for y, x in cells if y < height and x < width]
            keys = inside if masked else cells
            for head in range(heads):
                part = [slice(i * channels + head * d, i * channels + (head + 1) * d) for i in range(3)]
                at = [qkv[y, x] if y < height and x < width else bias for y, x in keys]
                k, v = np.array([a[part[1]] for a in at]), np.array([a[part[2]] for a in at])
                for y, x in inside:
                    scores = k @ qkv[y, x, part[0]] / np.sqrt(d)
                    weights = np.exp(scores - scores.max())
                    out[y, x, head * d : (head + 1) * d] = weights / weights.sum() @ v
    return out


# (height, width) -> whether mmseg's mask works there: not when exactly one side needs padding
@pytest.mark.parametrize(("size", "masks"), [((9, 10), True), ((7, 10), False), ((9, 14), False), ((14, 7), False)])
def test_lsa_reference_against_loops(size: tuple[int, int], masks: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, *size, 3 * 8, generator=generator, dtype=torch.float64)
    bias = torch.randn(3 * 8, generator=generator, dtype=torch.float64)
    for padding in ("parity", "masked"):
        got = lsa_reference(qkv, bias, num_heads=2, padding=padding).numpy()
        for image in range(2):
            want = naive_lsa(qkv[image].numpy(), bias.numpy(), 2, 7, masked=masks or padding == "masked")
            np.testing.assert_allclose(got[image], want, atol=1e-12)


def test_gsa_reference_is_scaled_dot_product_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, kv = (torch.randn(2, n, c, generator=generator, dtype=torch.float64) for n, c in ((15, 12), (6, 24)))
    k, v = (x.reshape(2, 6, 3, 4).transpose(1, 2) for x in kv.split(12, dim=2))
    want = torch.nn.functional.scaled_dot_product_attention(q.reshape(2, 15, 3, 4).transpose(1, 2), k, v)
    torch.testing.assert_close(gsa_reference(q, kv, num_heads=3), want.transpose(1, 2).reshape(2, 15, 12))


def test_drop_path_is_off_in_eval_and_doubled_in_gsa_and_ffn_branches() -> None:
    model = build_model("twins_svt-s_fpn", 2)
    last = model.backbone.layers[3]
    assert last[3].attn.dropout_layer.rate == last[3].ffn.dropout_layer.rate == last[3].drop_path.rate == 0.2
    assert not hasattr(last[2].attn, "dropout_layer")  # LSA's branch is dropped once
    x = torch.ones(4096, 1)
    assert last[3].drop_path(x) is x
    dropped = last[3].drop_path.train()(x)
    assert set(dropped.flatten().tolist()) == {0.0, 1.25}
    assert abs(float(dropped.mean()) - 1) < 0.05
