"""The fused forward pass of a folded model: the same logits as by torch's own operators."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twins_trt.errors import UsageError
from twins_trt.kernels.patch import patch_norm
from twins_trt.kernels.position.launch import is_dense
from twins_trt.models import build_model, fused
from twins_trt.models.backbone import GSA
from twins_trt.models.beside import Beside
from twins_trt.models.folded import FoldedModel
from twins_trt.models.fused import patchwise, pointwise
from twins_trt.models.seeded import seed_weights
from twins_trt.models.zoo import list_models


def folded(name: str, kernels: str | None) -> FoldedModel:
    model = build_model(name, num_classes=11)
    seed_weights(model)
    return FoldedModel(model, device="cpu", dtype=torch.float32, kernels=kernels)


@pytest.mark.parametrize("size", [(64, 96), (67, 90)], ids=["multiples of 32", "padded"])
@pytest.mark.parametrize("name", [name for name in list_models() if "-s_" in name])
def test_the_fused_model_gives_the_same_masks(name: str, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain, fused = (folded(name, kernels)(x) for kernels in (None, "reference"))
    assert plain.shape == fused.shape == (2, 11, -(-size[0] // 4), -(-size[1] // 4))
    assert (plain - fused).abs().max() <= 1e-4 * plain.abs().max()
    assert torch.equal(plain.argmax(1), fused.argmax(1))


@pytest.mark.parametrize("kernels", [None, "reference"])
@pytest.mark.parametrize("shape", [(1, 3, 28, 64), (1, 3, 64, 28), (1, 4, 64, 64), (3, 64, 64)], ids=str)
def test_what_no_model_takes_is_named(shape: tuple[int, ...], kernels: str | None) -> None:
    model = folded("twins_svt-s_fpn", kernels)
    with torch.inference_mode(), pytest.raises(UsageError, match="H and W of 29 or more"):
        model(torch.zeros(shape))


@pytest.mark.parametrize("kernels", [None, "reference"])
def test_autocast_changes_nothing(kernels: str | None) -> None:
    model = folded("twins_svt-s_fpn", kernels)
    x = torch.randn(1, 3, 29, 33, generator=torch.Generator().manual_seed(0))  # the smallest side
    with torch.inference_mode():
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(x)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_weights_of_the_positional_encodings_are_dense() -> None:
    """They are read fastest so, and are the same weights."""
    encodings = [folded("twins_svt-s_fpn", kernels).model.backbone.position_encodings for kernels in ("auto", None)]
    for ours, plain in zip(*encodings, strict=True):
        assert is_dense(ours.proj.weight) and not is_dense(plain.proj.weight)
        assert torch.equal(ours.proj.weight, plain.proj.weight)


def test_products_are_convolutions() -> None:
    x = torch.randn(2, 5, 12, 8)
    narrow, patches = nn.Conv2d(5, 7, 1), nn.Conv2d(5, 7, 4, 4)
    torch.testing.assert_close(pointwise(narrow, x), narrow(x))
    torch.testing.assert_close(patchwise(patches, x).permute(0, 3, 1, 2), patches(x))


@pytest.mark.parametrize("size", [(64, 96), (67, 90)], ids=["multiples of 32", "padded"])
@pytest.mark.parametrize("name", ["twins_svt-s_fpn", "twins_pcpvt-s_upernet", "twins_svt-b_fpn"])
def test_summaries_and_embeddings_are_one_operator_each(
    monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int]
) -> None:
    """Each convolution once, with its own norm, and weights that kernels read as they are."""
    called: list[tuple[int, ...]] = []

    def recorded(x: Tensor, *tensors: Tensor, eps: float, backend: str) -> Tensor:
        weight = tensors[0]
        called.append(tuple(map(id, tensors)))
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert backend == "reference" and eps == epsilons[id(weight)]
        return patch_norm(x, *tensors, eps=eps, backend=backend)

    monkeypatch.setattr(fused, "patch_norm", recorded)
    model = folded(name, "reference")
    backbone = model.model.backbone
    pairs = [(embed.projection, embed.norm) for embed in list(backbone.patch_embeds)[1:]]
    pairs += [(each.sr, each.norm) for each in backbone.modules() if isinstance(each, GSA) and each.sr_ratio > 1]
    epsilons = {id(conv.weight): norm.eps for conv, norm in pairs}
    with torch.inference_mode():
        model(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)))
    expected = [tuple(map(id, (conv.weight, conv.bias, norm.weight, norm.bias))) for conv, norm in pairs]
    assert sorted(called) == sorted(expected) and len(set(called)) == len(called) > 3


class Stream:
    """Work that is done in order. known: how much of each stream's work is over where this one's begins."""

    def __init__(self, priority: int = 0) -> None:
        self.cuda_stream = id(self)
        self.priority = priority
        self.work = 0
        self.known: dict[Stream, int] = {}

    def wait_stream(self, other: Stream) -> None:
        for stream, work in (*other.known.items(), (other, other.work)):
            self.known[stream] = max(work, self.known.get(stream, 0))


class Capture(TorchDispatchMode):
    """A capture on one stream and those beside it: which results were read before their stream was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.main = self.current = Stream()
        self.streams = {self.main}
        self.early: list[str] = []
        self._written: dict[int, tuple[Stream, int]] = {}  # by storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.streams.add(self.current)
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and (made := self._written.get(x.untyped_storage().data_ptr())):
                stream, work = made
                if stream is not self.current and self.current.known.get(stream, 0) < work:
                    self.early.append(str(func))
        result = func(*args, **(kwargs or {}))
        self.current.work += 1
        if not func.is_view:
            for x in tree_leaves(result):
                if isinstance(x, Tensor):
                    self._written[x.untyped_storage().data_ptr()] = (self.current, self.current.work)
        return result

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def missing(self) -> list[Stream]:
        """Streams whose last work the main one has not waited for: a capture cannot end so."""
        return [each for each in self.streams - {self.main} if self.main.known.get(each, 0) < each.work]


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    made = Capture()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: made.current)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", made.on)
    return made


@pytest.mark.parametrize(
    ("name", "streams"), [("twins_svt-s_fpn", 4), ("twins_pcpvt-s_fpn", 4), ("twins_svt-s_upernet", 7)]
)
def test_parts_that_run_at_once_wait_for_what_they_read(capture: Capture, name: str, streams: int) -> None:
    """Four levels of a pyramid, or three and four pools. Twice: the second time finds the streams of the first."""
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    model = folded(name, "reference")
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        expected = model(x)
        patch.undo()
        with capture:
            found = [model(x) for _ in range(2)]
    assert all(torch.equal(each, expected) for each in found)
    assert capture.early == [] and capture.missing() == []
    assert len(capture.streams) == streams
    assert {stream.priority for stream in capture.streams - {capture.main}} == {-1}


@pytest.mark.parametrize("forgotten", ["before", "after"])
def test_a_part_that_does_not_wait_is_seen(capture: Capture, monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    waits = Stream.wait_stream

    def wait_stream(stream: Stream, other: Stream) -> None:
        if (stream is capture.main) != (forgotten == "after"):
            waits(stream, other)

    monkeypatch.setattr(Stream, "wait_stream", wait_stream)
    with torch.inference_mode(), capture:
        folded("twins_svt-s_fpn", "reference")(torch.zeros(1, 3, 64, 96))
    assert capture.early
    assert bool(capture.missing()) == (forgotten == "after")


def test_an_error_in_a_part_leaves_no_stream_apart(capture: Capture) -> None:
    """The capture can then be ended, and its caller sees the error and not the stream."""

    def fail() -> torch.Tensor:
        torch.ones(1)
        raise ValueError("out of range")

    with capture, pytest.raises(ValueError, match="out of range"):
        Beside().run([lambda: torch.ones(1), lambda: torch.ones(2), fail])
    assert len(capture.streams) == 3 and capture.missing() == []


def test_no_two_models_have_a_stream_in_common(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = [Stream(), Stream()]
    given = itertools.cycle(pool)
    monkeypatch.setattr(torch.cuda, "Stream", lambda priority: next(given))
    parts = [functools.partial(torch.full, (1,), float(i)) for i in range(4)]
    first, second = Beside(), Beside()
    with capture:
        for beside in (first, second):  # too few streams, and none: the parts' results are the same
            assert [float(x) for x in beside.run(parts)] == [0.0, 1.0, 2.0, 3.0]
            assert capture.streams == {capture.main, *pool}
        del first
        gc.collect()
        capture.streams.clear()
        assert [float(x) for x in second.run(parts)] == [0.0, 1.0, 2.0, 3.0]
        assert capture.streams == {capture.main, *pool}  # they are free again
