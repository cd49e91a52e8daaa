"""Small checkpoints for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from twins_trt.models.examine import CLASSIFIER
from twins_trt.models.formats import recognize
from twins_trt.models.widths import read_spec

CLASSES = ["road", "tree", "sky"]
PALETTE = [[128, 64, 128], [0, 128, 0], [0, 0, 255]]


def weights() -> dict[str, Tensor]:
    """A small state dict, always the same."""
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "bn.running_mean": torch.randn(4, generator=generator),
        "bn.num_batches_tracked": torch.tensor(7),
    }


def save(content: object, path: Path, *, legacy: bool = False) -> Path:
    """Writes `content` as torch does; legacy: in the format before zip archives."""
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def held(weights: Mapping[str, Tensor]) -> tuple[str, int]:
    """(name, number of classes) of a whole model's weights, whoever named them."""
    state = recognize(weights, "x.pth").state_dict
    return read_spec(state, "x.pth").name, len(state[CLASSIFIER])
