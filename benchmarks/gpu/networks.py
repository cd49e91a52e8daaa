"""Whole models as functions from a uint8 image to a uint8 mask, in each form that is compared."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.workload import Workload
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.models.folded import FoldedModel
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor

Network = Callable[[Tensor], Tensor]
"""uint8 [B, H, W, 3], RGB -> uint8 [B, H, W], both on the device."""

CLASSES = 150


@dataclass(frozen=True)
class Form:
    """How a whole model is computed.

    attention: `kernels` (ours, and those before and after the network), `sdpa` or `reference`. precision: `fp32`, `amp`
    (autocast to half) or `half` (weights too, channels last, BatchNorm folded).
    compiled: what torch.compile gets: nothing, the `network` between our kernels, or `all`. graph: who replays it as a
    CUDA graph: nobody, `ours` (this benchmark, as the torch engine does) or `torch` (its own graphs).
    tuned: by max-autotune, which tries all it knows, with the weights as constants of the graph.
    """

    attention: str
    precision: str
    compiled: str = ""
    graph: str = ""
    tuned: bool = False


FORMS = {
    "eager fp32": Form("reference", "fp32"),
    "eager amp": Form("reference", "amp"),
    "compiled amp": Form("reference", "amp", compiled="all", graph="torch"),
    "sdpa compiled": Form("sdpa", "half", compiled="all", graph="torch"),
    "plain autotuned": Form("reference", "half", compiled="all", graph="torch", tuned=True),
    "sdpa autotuned": Form("sdpa", "half", compiled="all", graph="torch", tuned=True),
    "ours": Form("kernels", "half", graph="ours"),
    "ours compiled": Form("kernels", "half", compiled="network", graph="ours"),
    "ours autotuned": Form("kernels", "half", compiled="all", graph="torch", tuned=True),
}
"""Autotuned ones are the strongest that a user of torch can have: half precision, channels last, BatchNorm folded,
weights frozen into the graph, max-autotune, and what lies before and after the network compiled with it."""


def amp_dtype(workload: Workload) -> torch.dtype:
    """What autocast to half computes in: float16 on a GPU, bfloat16 on a CPU."""
    return torch.float16 if workload.device.type == "cuda" else torch.bfloat16


def seeded_model(name: str, workload: Workload, *, attention: str) -> Segmentor:
    """A model with weights that keep activations in range. attention: a backend, or `kernels` for the workload's."""
    backend = workload.kernels if attention == "kernels" else attention
    model = Segmentor(workload.spec(name), CLASSES, attention=backend).eval()
    seed_weights(model)
    return model


def network_of(name: str, form: Form, workload: Workload) -> Network:
    """The model in this form. The first calls compile, and record torch's graphs; the next call of one with `torch`
    graphs overwrites the mask of the last."""
    kind = HalfNetwork if form.precision == "half" else FloatNetwork
    whole: nn.Module = kind(name, form, workload)
    if form.compiled == "all":
        return compiled_whole(whole, workload, tuned=form.tuned)
    return torch.inference_mode()(whole)


class Normalize(nn.Module):
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], channels last as the image. Mean and standard deviation are buffers,
    which are frozen with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        facts = Preprocessing()
        for name, values in (("mean", facts.mean), ("std", facts.std)):
            self.register_buffer(name, torch.tensor(values, device=device)[:, None, None])  # [3, 1, 1]

    def forward(self, image: Tensor) -> Tensor:
        return (image.permute(0, 3, 1, 2).float() - self.mean) / self.std


class FloatNetwork(nn.Module):
    """The plain model in fp32, by itself or under autocast to half."""

    def __init__(self, name: str, form: Form, workload: Workload) -> None:
        super().__init__()
        self.size = workload.size
        self.device_type = workload.device.type
        self.amp_dtype = amp_dtype(workload)
        self.amp = form.precision == "amp"
        model = seeded_model(name, workload, attention=form.attention)
        self.model = model.to(workload.device).requires_grad_(False)
        self.normalize = Normalize(workload.device)

    def forward(self, image: Tensor) -> Tensor:
        x = self.normalize(image)  # [B, 3, H, W]
        with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp):
            logits = self.model(x)
        return plain_mask(logits, self.size)


class HalfNetwork(nn.Module):
    """A folded model in half precision: with our kernels before, inside and after it, or in plain torch."""

    def __init__(self, name: str, form: Form, workload: Workload) -> None:
        super().__init__()
        self.size = workload.size
        self.dtype = workload.dtype
        self.kernels = workload.kernels if form.attention == "kernels" else ""
        self.model = FoldedModel(
            seeded_model(name, workload, attention=form.attention),
            device=workload.device,
            dtype=workload.dtype,
            kernels=self.kernels if self.kernels and not form.compiled else None,
            compiler=workload.compiler if form.compiled == "network" else None,
        )
        self.normalize = Normalize(workload.device)

    def forward(self, image: Tensor) -> Tensor:
        if not self.kernels:
            return plain_mask(self.model(self.normalize(image).to(self.dtype)), self.size)
        from twins_trt.kernels.postprocess import resize_argmax
        from twins_trt.kernels.preprocess import resize_normalize

        facts = Preprocessing()
        x = resize_normalize(
            image,
            self.size,
            mean=facts.mean,
            std=facts.std,
            dtype=self.dtype,
            channels_last=True,
            backend=self.kernels,
        )
        return resize_argmax(self.model(x), self.size, backend=self.kernels)[0]


def plain_mask(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """float [B, C, h, w] -> uint8 [B, H, W], resized in the logits' own precision, which moves half the bytes."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)


def compiled_whole(network: nn.Module, workload: Workload, *, tuned: bool) -> Network:
    """`network` compiled whole for inference, with torch's own CUDA graphs on a GPU.

    tuned: as in `Form`. Its inputs must not be marked as static then: dynamo freezes what is, and inductor would
    compute the mask while it compiles.
    """
    mode = None  # others than inductor have none
    if workload.compiler == "inductor":
        mode = "max-autotune" if tuned else "reduce-overhead"
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend=workload.compiler, mode=mode)
    started = False

    def run(image: Tensor) -> Tensor:
        nonlocal started
        torch.compiler.cudagraph_mark_step_begin()  # what the last call returned may be overwritten
        with torch.no_grad():  # freezing needs it; torch's graphs are tested less in inference mode
            if started:
                return compiled(image)
            with _compiling(workload.compiler, frozen=tuned):
                result = compiled(image)
            started = True
            return result

    return run


def graphs_skipped() -> int:
    """How many compiled graphs inductor has not made a CUDA graph of in this process."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


@contextlib.contextmanager
def _compiling(compiler: str, *, frozen: bool) -> Iterator[None]:
    """Freezes weights where wanted. That is no option of torch.compile here, because dynamo looks at it too, and gets
    no options."""
    import torch._inductor.config as inductor

    with contextlib.ExitStack() as stack:
        stack.enter_context(inductor.patch(freezing=frozen))
        if compiler == "inductor":
            from torch._inductor import select_algorithm

            said = select_algorithm.PRINT_AUTOTUNE  # a table for each product and convolution, on stderr
            stack.callback(functools.partial(setattr, select_algorithm, "PRINT_AUTOTUNE", said))
            select_algorithm.PRINT_AUTOTUNE = False
        yield
