"""Small checkpoints for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

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
