"""A running mean of the weights, which often scores better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of parameters; buffers (BatchNorm's statistics) are copied.

    decay: the share of the mean that a step keeps, such as 0.9998 (mmengine's default).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.values = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self._averaged = {name for name, _ in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the weights after a step to the mean."""
        for key, value in model.state_dict().items():
            if key in self._averaged:
                self.values[key].lerp_(value, 1 - self.decay)
            else:
                self.values[key].copy_(value)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Takes the `values` of a saved run."""
        for key, value in values.items():
            self.values[key].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block `model` has the mean in place of its weights."""
        own = {key: value.detach().clone() for key, value in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(own)
