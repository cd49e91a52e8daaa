"""Rounding to INT8 and back, as by QuantizeLinear and DequantizeLinear in `builders.quantize`, and its gradient.

The gradient is the straight-through estimate: rounding passes it, clipping stops it (arXiv 1308.3432). Scales are
rounded to float16, as an engine stores them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twins_trt.builders.quantize.insert import QMAX, SMALLEST_SCALE
from twins_trt.calib.histogram import Histogram
from twins_trt.calib.observers import amax as chosen_amax
from twins_trt.calib.options import CalibrationOptions

SOFTMAX_RANGE = 1.0


class Activation:
    """One tensor that is quantized: per tensor, symmetric, int8.

    name: as in the graph. Without a range it returns its values unchanged and observes them; with one it quantizes.
    """

    def __init__(self, name: str, *, bins: int) -> None:
        self.name = name
        self.histogram = Histogram.empty(bins)
        self.amax: float | None = None

    @property
    def observing(self) -> bool:
        return self.amax is None

    def choose(self, options: CalibrationOptions) -> float:
        """The range of the observed values, by the first observer of the options."""
        return chosen_amax(options.observers[0], self.histogram, options)

    def __call__(self, x: Tensor) -> Tensor:
        """x: float of any shape -> the same shape and dtype, as an INT8 layer reads it."""
        if self.amax is None:
            self.histogram.add(x.detach().float().cpu().numpy())
            return x
        return quantized_activation(x, self.amax)


def quantized_activation(x: Tensor, amax: float) -> Tensor:
    """x: float of any shape, rounded to int8 steps of amax / 127; saturates at -128 and 127, as QuantizeLinear does."""
    return _round(x, scale_of(torch.tensor(amax, device=x.device)), -QMAX - 1)


def quantized_weight(weight: Tensor) -> Tensor:
    """weight: float [out, ...], rounded to int8 with a step for each output; -128 is not used."""
    largest = weight.detach().abs().flatten(1).amax(dim=1)
    scale = scale_of(largest).view(-1, *[1] * (weight.ndim - 1))
    return _round(weight, scale, -QMAX)


def scale_of(amax: Tensor) -> Tensor:
    """The step of a range, float32, rounded to float16."""
    return (amax.double() / QMAX).clamp(min=SMALLEST_SCALE).half().float()


def _round(x: Tensor, scale: Tensor, lowest: int) -> Tensor:
    steps = (x.float() / scale).clamp(lowest, QMAX)
    rounded = steps + (steps.round() - steps).detach()  # exact: the difference is at most a half
    return (rounded * scale).to(x.dtype)
