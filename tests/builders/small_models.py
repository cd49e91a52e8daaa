"""Small models that are none of the zoo's, their images, and what they should give."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from twins_trt.data.preprocessing import Preprocessing, normalized_planes
from twins_trt.models.conventions import Conventions
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.zoo import DEMO, ModelSpec

SVT = replace(DEMO, name="twins_svt-custom_fpn", variant="custom", drop_path_rate=0.0)
OWN = {
    "narrow neck": replace(SVT, fpn_channels=(128, 32)),
    "odd neck and head": replace(SVT, fpn_channels=(36, 20)),
    "head wider than the neck": replace(SVT, fpn_channels=(24, 52)),
    "odd dims": replace(SVT, embed_dims=(12, 20, 36, 44), num_heads=(3, 5, 9, 11)),  # four channels a head
    "other depths, ratios and reductions": replace(
        SVT, depths=(1, 3, 2, 1), mlp_ratios=(3, 2, 1, 5), sr_ratios=(4, 4, 1, 2), num_heads=(2, 2, 2, 4)
    ),
    "other windows": replace(SVT, window_size=5, num_heads=(1, 1, 1, 1)),
    "own eps": replace(SVT, norm_eps=1e-2, block_norm_eps=3e-2),
    "pcpvt": replace(
        SVT, name="twins_pcpvt-custom_fpn", family="pcpvt", embed_dims=(20, 28, 40, 52), num_heads=(1, 1, 5, 13)
    ),
    "upernet": replace(SVT, name="twins_svt-custom_upernet", head="upernet", uper_channels=64),
    "odd upernet": replace(
        SVT, name="twins_pcpvt-custom_upernet", family="pcpvt", head="upernet", uper_channels=37, depths=(1, 1, 1, 2)
    ),
}


def model_of(
    spec: ModelSpec,
    num_classes: int = 5,
    *,
    padding: str = "parity",
    threshold: float | None = None,
    preprocessing: Preprocessing | None = None,
) -> Segmentor:
    torch.manual_seed(0)
    model = Segmentor(spec, num_classes, padding=padding, attention="reference", threshold=threshold).eval()
    seed_weights(model)
    model.conventions = Conventions(preprocessing or Preprocessing(), threshold=threshold, padding=padding)
    return model


@functools.cache
def binary_model(threshold: float = 0.3) -> Segmentor:
    """Its masks hold both classes."""
    model = model_of(SVT, 2, threshold=threshold)
    with torch.no_grad():
        model.decode_head.conv_seg.bias[:] = 0
        logits, _ = reference(model, image(64, 96))
        wanted = np.log(threshold / (1 - threshold))
        model.decode_head.conv_seg.bias[:] = wanted - float(np.median(logits[:, 1]))
    return model


def image(height: int, width: int, batch: int = 1) -> np.ndarray:
    """uint8 [batch, H, W, 3]: blocks of colour and noise."""
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 200, (batch, height // 8 + 1, width // 8 + 1, 3))
    blocks = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    return (blocks + rng.integers(0, 56, (batch, height, width, 3))).astype(np.uint8)


def reference(model: Segmentor, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits [N, classes, h, w], and the graph's outputs at the image's size, as mmsegmentation computes them."""
    planes = np.stack([normalized_planes(each, model.conventions.preprocessing) for each in pixels])
    with torch.inference_mode():
        logits = model(torch.from_numpy(planes))
        resized = functional.interpolate(logits, size=pixels.shape[1:3], mode="bilinear", align_corners=False)
        if model.threshold is None:
            return logits.numpy(), {"mask": resized.argmax(1).numpy()}
        probability = resized.sigmoid()[:, 0]
        wanted = {"mask": (probability > model.threshold).numpy(), "probability": probability.numpy()}
        return model.class_logits(logits).numpy(), wanted
