"""The resize-and-normalize kernel in Triton's interpreter, its operator and its reference, against OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twins_trt.data.preprocessing import Preprocessing, normalized_planes
from twins_trt.data.resizing import resize_image
from twins_trt.errors import UsageError
from twins_trt.kernels.preprocess import resize_normalize, resize_normalize_reference
from twins_trt.kernels.preprocess.launch import InputFormat
from twins_trt.kernels.preprocess.op import resize_normalize_op

pytest.importorskip("cv2", reason="OpenCV, whose pixels these are, is not installed")

FORWARD = "twins_trt.kernels.preprocess.launch:resize_normalize_forward"
MMSEG = Preprocessing()

SHAPES = {  # batch, height, width of the image; height, width of the result
    "1x1": ((1, 1, 1), (1, 1)),
    "1x1 enlarged": ((1, 1, 1), (5, 3)),
    "larger, primes, batch 3": ((3, 7, 5), (13, 11)),
    "smaller": ((1, 23, 31), (7, 9)),
    "half": ((2, 12, 20), (6, 10)),
    "one axis larger, one smaller": ((1, 5, 30), (9, 11)),
    "the same size": ((2, 9, 7), (9, 7)),
    "more than a block wide": ((1, 2, 40), (3, 300)),
}


def image_of(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_opencv(image: Tensor, size: tuple[int, int]) -> Tensor:
    planes = [normalized_planes(resize_image(one.numpy(), size, as_mmseg=True), MMSEG) for one in image]
    return torch.from_numpy(np.stack(planes))


class Devices(TorchDispatchMode):
    """Where the results of all operators lie."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {x.device.type for x in tree_leaves(out)}
        return out


def test_only_the_first_call_of_a_size_copies_to_the_device() -> None:
    """A CUDA graph captures a later one, in which such a copy is forbidden."""
    image = torch.empty(1, 19, 29, 3, dtype=torch.uint8, device="meta")
    seen = []
    for _ in range(2):
        with Devices() as devices:
            resize_normalize_reference(image, (43, 47), mean=(1.5, 2.5, 3.5), std=MMSEG.std)
        seen.append(devices.seen)
    assert seen == [{"cpu", "meta"}, {"meta"}]


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "channels last"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_is_opencv_bit_for_bit(interpreted: Callable[..., Any], name: str, channels_last: bool) -> None:
    shape, size = SHAPES[name]
    image = image_of(shape)
    for dtype in (torch.float32, torch.float16):
        out = interpreted(FORWARD, image, InputFormat(*size, MMSEG.mean, MMSEG.std, dtype, channels_last))
        assert torch.equal(out, by_opencv(image, size).to(dtype))
        assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@settings(max_examples=150, deadline=None)
@given(st.tuples(*[st.integers(1, 70)] * 4), st.integers(0, 2**32 - 1))
def test_the_reference_is_opencv_bit_for_bit_at_any_size(sizes: tuple[int, int, int, int], seed: int) -> None:
    height, width, new_height, new_width = sizes
    image = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), dtype=np.uint8))
    out = resize_normalize_reference(image, (new_height, new_width), mean=MMSEG.mean, std=MMSEG.std)
    assert torch.equal(out, by_opencv(image, (new_height, new_width)))


@pytest.mark.parametrize("size", [(512, 683), (360, 480), (512, 512), (1024, 2048)])
def test_the_reference_is_opencv_at_the_sizes_of_pictures(size: tuple[int, int]) -> None:
    image = image_of((1, 720, 960))
    out = resize_normalize_reference(image, size, mean=MMSEG.mean, std=MMSEG.std)
    assert torch.equal(out, by_opencv(image, size))


def test_strides_do_not_matter(interpreted: Callable[..., Any]) -> None:
    image = image_of((2, 9, 8))
    wide = torch.full((2, 18, 10, 4), 255, dtype=torch.uint8)
    view = wide[:, ::2, 1:9, :3].copy_(image)
    planes = image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for size in ((5, 6), (9, 8)):
        wanted = InputFormat(*size, MMSEG.mean, MMSEG.std, torch.float32, channels_last=True)
        for form in (view, planes, image.flip(2).flip(2)):
            assert torch.equal(interpreted(FORWARD, form, wanted), by_opencv(image, size))


def test_the_operator_is_registered_in_full() -> None:
    for dtype, channels_last in ((torch.float16, True), (torch.float32, False)):
        arguments = (image_of((2, 5, 4)), 6, 7, list(MMSEG.mean), list(MMSEG.std), dtype, channels_last)
        assert set(opcheck(resize_normalize_op, arguments).values()) == {"SUCCESS"}
        assert torch.equal(resize_normalize_op(*arguments), by_opencv(arguments[0], (6, 7)).to(dtype))


def reached_by_name() -> Tensor:
    """Where kernels are interpreted."""
    return resize_normalize(image_of((1, 5, 4)), (6, 7), mean=MMSEG.mean, std=MMSEG.std, backend="triton")


def test_the_public_function_reaches_the_kernel(interpreted: Callable[..., Any]) -> None:
    image = image_of((1, 5, 4))
    assert torch.equal(interpreted("test_preprocess:reached_by_name"), by_opencv(image, (6, 7)))
    on_cpu = resize_normalize(image, (6, 7), mean=MMSEG.mean, std=MMSEG.std)
    assert torch.equal(on_cpu, by_opencv(image, (6, 7)))


def test_what_cannot_be_is_named() -> None:
    def normalize(image: Tensor, size: tuple[int, int] = (4, 4), backend: str = "auto") -> Tensor:
        return resize_normalize(image, size, mean=MMSEG.mean, std=MMSEG.std, backend=backend)

    with pytest.raises(UsageError, match=r"\[1, 3, 4, 4\] is not a batch of images"):
        normalize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(UsageError, match="float32"):
        normalize(torch.zeros(1, 4, 4, 3))
    with pytest.raises(UsageError, match="4x0"):
        normalize(image_of((1, 4, 4)), (4, 0))
    with pytest.raises(UsageError, match="resize_normalize has no backend 'sdpa'"):
        normalize(image_of((1, 4, 4)), backend="sdpa")
