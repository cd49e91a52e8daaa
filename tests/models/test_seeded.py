from __future__ import annotations

import hashlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from twins_trt.models import build_model  # noqa: E402
from twins_trt.models.seeded import seed_weights, seeded_array, seeded_state_dict  # noqa: E402


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("backbone.patch_embeds.0.projection.weight", (64, 3, 4, 4), "61f6467bf0c657d7"),
        ("decode_head.conv_seg.weight", (4, 128, 1, 1), "abfabf88ab3aa9cf"),
        ("decode_head.conv_seg.bias", (11,), "836e9f545294b35a"),
        ("neck.fpn_convs.0.bn.running_var", (256,), "ed197ad353dc78ee"),
    ],
)
def test_the_bits_never_change(key: str, shape: tuple[int, ...], expected: str) -> None:
    """Bundles built from them are compared by hash, on any machine and with any NumPy."""
    assert digest(seeded_array(key, shape)) == expected


def test_name_and_shape_decide() -> None:
    values = seeded_array("a.weight", (32, 16))
    assert values.dtype == np.float32 and values.shape == (32, 16)
    assert np.array_equal(values, seeded_array("a.weight", (32, 16)))
    assert not np.array_equal(values, seeded_array("b.weight", (32, 16)))
    assert not np.array_equal(values.ravel(), seeded_array("a.weight", (16, 32)).ravel())


def test_scales_keep_the_variance_of_what_goes_in() -> None:
    weight = seeded_array("x.weight", (512, 64, 3, 3))
    assert weight.std() == pytest.approx((64 * 9) ** -0.5, rel=0.01)
    assert abs(weight.mean()) < 1e-3
    scale = seeded_array("norm1.weight", (512,))
    assert 0.9 <= scale.min() < scale.max() <= 1.1
    variance = seeded_array("bn.running_var", (512,))
    assert 0.75 <= variance.min() < variance.max() <= 1.25
    assert np.abs(seeded_array("in_proj_bias", (512,))).max() <= 0.02
    counter = seeded_array("bn.num_batches_tracked", ())
    assert counter.dtype == np.int64 and counter == 0
    classifier = seeded_array("decode_head.conv_seg.weight", (150, 512, 1, 1))
    assert np.abs(classifier.sum(axis=1)).max() < 1e-4


def test_every_tensor_of_a_model_is_filled() -> None:
    model = build_model("twins_svt-s_fpn", 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seed_weights(model)
    expected = seeded_state_dict(before)
    after = model.state_dict()
    assert after.keys() == expected.keys()
    assert all(np.array_equal(after[key].numpy(), expected[key]) for key in after)
    assert not model.training


@pytest.mark.parametrize("name", ["twins_svt-s_fpn", "twins_pcpvt-s_upernet"])
def test_masks_show_several_classes_and_logits_fit_float16(name: str) -> None:
    model = build_model(name, 11)
    seed_weights(model)
    patches = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).repeat(16, 2).repeat(16, 3)
    with torch.inference_mode():
        logits = model(torch.from_numpy(patches.astype(np.float32)))
    assert logits.abs().max() < 1000
    counts = torch.bincount(logits.argmax(dim=1).ravel(), minlength=11)
    assert (counts > 0).sum() >= 4
    assert counts.max() < 0.95 * counts.sum()
