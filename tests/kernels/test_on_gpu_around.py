"""The kernels before and after the network, and the torch engine with its CUDA graphs, on a GPU.

`test_gpu_tests.py` runs these tests' logic on a CPU: it sets DEVICE.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from interpreter import poisoned_allocations
from torch import Tensor

from twins_trt.data.preprocessing import Preprocessing
from twins_trt.kernels.postprocess import resize_argmax
from twins_trt.kernels.postprocess.launch import resize_argmax_forward
from twins_trt.kernels.preprocess import resize_normalize, resize_normalize_reference
from twins_trt.models import build_model
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor
from twins_trt.runtime import GraphInterface, RuntimeOptions, TensorSpec
from twins_trt.runtime.engines.torch import MAX_CAPTURES, TorchEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

DEVICE = "cuda"
MMSEG = Preprocessing()
MODEL = "twins_svt-s_fpn"
LOGITS = (3, 150, 32, 24)
LAYOUTS = ["planes", "classes last", "padded classes"]


def logits_of(dtype: torch.dtype, layout: str) -> Tensor:
    """LOGITS. Padded: as a folded model hands them over, with NaN behind the classes."""
    torch.manual_seed(0)
    logits = torch.randn(LOGITS, device=DEVICE).to(dtype)
    if layout == "planes":
        return logits
    if layout == "classes last":
        return logits.contiguous(memory_format=torch.channels_last)
    batch, classes, height, width = LOGITS
    padded = torch.full((batch, height, width, -(-classes // 16) * 16), float("nan"), dtype=dtype, device=DEVICE)
    return padded.permute(0, 3, 1, 2)[:, :classes].copy_(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (31, 53), (128, 96), (512, 512)])
def test_masks_and_probabilities(size: tuple[int, int], layout: str, dtype: torch.dtype) -> None:
    logits = logits_of(dtype, layout)
    with poisoned_allocations():
        mask, best = resize_argmax(logits, size, probability=True, backend="triton")
        without, _ = resize_argmax(logits, size, backend="triton")
    full = torch.nn.functional.interpolate(logits.double(), size, mode="bilinear", align_corners=False)
    assert best is not None and (best - full.softmax(1).amax(1)).abs().max() <= 1e-5
    for each in (mask, without):
        chosen = full.gather(1, each[:, None].long())[:, 0]
        assert (full.amax(1) - chosen).max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_cells_and_pixels_make_the_same_mask(dtype: torch.dtype) -> None:
    """Save where two classes are so close that the order of an interpolation decides."""
    logits = logits_of(dtype, "padded classes")
    size = (4 * LOGITS[2], 4 * LOGITS[3])
    full = torch.nn.functional.interpolate(logits.double(), size, mode="bilinear", align_corners=False)
    for cells in (True, False):
        with poisoned_allocations():
            mask, _ = resize_argmax_forward(logits, *size, probability=False, cells=cells)
        chosen = full.gather(1, mask[:, None].long())[:, 0]
        assert (full.amax(1) - chosen).max() <= 1e-5


@pytest.mark.parametrize("side", [9])
def test_the_first_of_equal_classes_wins(side: int) -> None:
    logits = torch.randn(1, 48, side, side, device=DEVICE).repeat(1, 3, 1, 1)  # 144 classes are whole blocks
    for form in (logits, logits.contiguous(memory_format=torch.channels_last)):
        for size in ((4 * side, 4 * side), (3 * side + 1, 2 * side + 1)):
            assert resize_argmax(form, size, backend="triton")[0].max() < 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (96, 128), (48, 64), (200, 333)])
def test_inputs_are_the_references_bit_for_bit(size: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8, device=DEVICE)
    for channels_last in (False, True):
        with poisoned_allocations():
            ours = resize_normalize(
                image,
                size,
                mean=MMSEG.mean,
                std=MMSEG.std,
                dtype=dtype,
                channels_last=channels_last,
                backend="triton",
            )
        theirs = resize_normalize(image.cpu(), size, mean=MMSEG.mean, std=MMSEG.std, dtype=dtype)
        assert torch.equal(ours.cpu(), theirs)


def test_a_graph_replays_the_reference_of_an_input() -> None:
    image = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8, device="cuda")
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        resize_normalize_reference(image, (37, 53), mean=MMSEG.mean, std=MMSEG.std)
        with torch.cuda.graph(graph, stream=stream):
            replayed = resize_normalize_reference(image, (37, 53), mean=MMSEG.mean, std=MMSEG.std)
        image.copy_(image.flip(0))
        graph.replay()
        expected = resize_normalize_reference(image, (37, 53), mean=MMSEG.mean, std=MMSEG.std)
    torch.cuda.synchronize()
    assert torch.equal(replayed, expected)


def engine_of(model: Segmentor, *, device: str | None = None, cuda_graph: bool = True) -> TorchEngine:
    """float16 on DEVICE, float32 on the CPU. Deterministic: else two engines may take other algorithms of cuDNN's."""
    side = (32, 64, 256)
    interface = GraphInterface(
        inputs=(TensorSpec.image(side, side, batch=(1, 1, 4)),),
        outputs=(TensorSpec.mask(side, side, batch=(1, 1, 4)),),
        classes=tuple("abcde"),
        palette=((0, 0, 0),) * 5,
    )
    options = RuntimeOptions(cuda_graph=cuda_graph, deterministic=True)
    dtype = torch.float16 if device is None else torch.float32
    return TorchEngine(model, interface, options=options, device=device or DEVICE, dtype=dtype)


def test_an_engine_with_graphs_gives_what_one_without_gives_and_nearly_what_float32_gives() -> None:
    model = build_model(MODEL, 5)
    seed_weights(model)
    graphs = engine_of(copy.deepcopy(model))
    launched = engine_of(copy.deepcopy(model), cuda_graph=False)
    on_cpu = engine_of(model, device="cpu")
    rng = np.random.default_rng(0)
    for turn in range(3):  # launched, captured, replayed
        for shape in ((1, 64, 96, 3), (3, 61, 83, 3)):
            image = rng.integers(0, 256, (*shape[:1], 8, 8, 3), dtype=np.uint8)
            image = image.repeat(16, 1).repeat(16, 2)[:, : shape[1], : shape[2]]
            first = graphs(image)["mask"]
            assert np.array_equal(first, launched(image)["mask"]), turn
            assert (first == on_cpu(image)["mask"]).mean() >= 0.98


def test_graphs_are_given_up_and_made_again() -> None:
    model = build_model(MODEL, 5)
    seed_weights(model)
    engine = engine_of(model)
    images = [np.full((1, 32 + 8 * i, 64, 3), 40 * (i % 6), np.uint8) for i in range(MAX_CAPTURES + 2)]
    masks = [engine(image)["mask"] for image in images for _ in range(2)][1::2]
    for image, mask in zip(images, masks, strict=True):
        assert all(np.array_equal(engine(image)["mask"], mask) for _ in range(2))
    engine.close()
