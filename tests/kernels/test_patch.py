"""The kernels of patches in Triton's interpreter, and their operator, against torch's own in float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from probe_operators import margins
from torch import Tensor, nn
from torch.library import opcheck

from twins_trt.errors import EngineError, UsageError
from twins_trt.kernels.crosscompile.compiler import compile_case
from twins_trt.kernels.layer_norm import launch as layer_norm
from twins_trt.kernels.patch import launch, patch_norm, patch_norm_reference
from twins_trt.kernels.patch.launch import (
    FEW_PATCHES,
    MODEL_PATCHES,
    cases,
    goes_in_parts,
    norm_tiling,
    parts_of,
    product_tiling,
)
from twins_trt.kernels.patch.op import patch_norm_op
from twins_trt.models.zoo import get_spec, list_models

FORWARD = "twins_trt.kernels.patch.launch:patch_norm_forward"
EPS = 1e-6
PROCESSORS = (1, 16, 170)
"""Of the GPU that a launch believes to be on: how many parts there are follows from it."""
GPUS = (4, 16, 84, 132, 170)
"""Multiprocessors of GPUs from a Jetson's to the largest."""

MAPS = {  # by resulting channels: batch, rows and columns of patches, and pixels left over
    64: (1, (1, 1), (0, 1)),
    128: (1, (37, 1), (1, 0)),
    320: (2, (3, 5), (1, 1)),
}


def tensors_of(
    size: tuple[int, int, int],
    batch: int = 1,
    patches: tuple[int, int] = (3, 5),
    rest: tuple[int, int] = (0, 0),
    dtype: torch.dtype = torch.float16,
) -> dict[str, Tensor]:
    """Maps and weights whose sums keep their size, channels last. The rest is no number: nobody may read it.

    size: channels, kernel and resulting channels. rest: rows and columns of pixels behind the last whole patch.
    """
    channels, side, channels_out = size
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale + shift).to(dtype)

    height, width = (patches[i] * side + rest[i] for i in range(2))
    x = random(batch, height, width, channels, scale=2.0, shift=0.5)
    x[:, patches[0] * side :], x[:, :, patches[1] * side :] = float("nan"), float("nan")
    weight = random(channels_out, side, side, channels, scale=(channels * side * side) ** -0.5)
    return {
        "x": x.permute(0, 3, 1, 2),
        "weight": weight.permute(0, 3, 1, 2),
        "bias": random(channels_out),
        "norm_weight": random(channels_out, scale=0.3, shift=1.0),
        "norm_bias": random(channels_out, scale=0.5),
    }


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).abs().max())


def assert_as_exact_as_torch(out: Tensor, given: dict[str, Tensor], *, eps: float = EPS) -> None:
    exact = patch_norm_reference(*(x.double() for x in given.values()), eps=eps)
    theirs = patch_norm_reference(*given.values(), eps=eps)
    assert out.dtype == given["x"].dtype and out.shape == exact.shape and out.is_contiguous()
    # a few roundings of fp32, which torch may have been lucky with in a single row
    roundings = torch.finfo(torch.float32).eps * float(exact.abs().max())
    assert error(out, exact) <= 2 * max(error(theirs, exact), roundings)
    # most of the largest error is the last rounding, so all are held too
    assert (out.double() - exact).norm() <= 1.5 * max(
        float((theirs.double() - exact).norm()), roundings * out.numel() ** 0.5
    )


@pytest.fixture
def in_parts(interpreted: Callable[..., Any]) -> Callable[..., Tensor]:
    """`in_parts(processors, given)`: the result of a launch for a GPU of so many multiprocessors."""

    def call(processors: int, given: dict[str, Tensor], *, eps: float = EPS) -> Tensor:
        assert goes_in_parts(given["x"], given["weight"])
        values = {"multiprocessors": processors}
        return interpreted("interpreter:call_with", values, FORWARD, *given.values(), eps=eps)

    return call


@pytest.fixture
def by_library(interpreted: Callable[..., Any]) -> Callable[..., Tensor]:
    """`by_library(given)`: the result where no number of patches is few."""

    def call(given: dict[str, Tensor], *, eps: float = EPS) -> Tensor:
        return interpreted("interpreter:call_with", {"FEW_PATCHES": 0}, FORWARD, *given.values(), eps=eps)

    return call


@pytest.mark.parametrize("channels_out", MAPS)
@pytest.mark.parametrize("channels", [32, 64, 96, 320])
@pytest.mark.parametrize("side", [2, 4, 8])
def test_parts_are_as_exact_as_torch(
    in_parts: Callable[..., Tensor], side: int, channels: int, channels_out: int
) -> None:
    batch, patches, rest = MAPS[channels_out]
    given = tensors_of((channels, side, channels_out), batch, patches, rest)
    blocks = channels_out // 64 * -(-batch * patches[0] * patches[1] // 32)
    numbers = {parts_of(channels * side * side, blocks, processors=each): each for each in PROCESSORS}
    assert 1 in numbers and len(numbers) > 1
    for processors in numbers.values():
        assert_as_exact_as_torch(in_parts(processors, given), given)


@pytest.mark.parametrize("channels_out", MAPS)
@pytest.mark.parametrize(("channels", "side"), [(64, 8), (96, 4), (320, 2)])
def test_a_library_is_as_exact_as_torch(
    by_library: Callable[..., Tensor], side: int, channels: int, channels_out: int
) -> None:
    given = tensors_of((channels, side, channels_out), *MAPS[channels_out])
    assert_as_exact_as_torch(by_library(given), given)


LIBRARY = {
    "fp32": ((64, 2, 64), (3, 5), torch.float32),
    "many patches": ((32, 2, 64), (3, 683), torch.float16),
    "odd channels": ((5, 3, 64), (3, 5), torch.float16),
    "odd resulting channels": ((64, 2, 21), (3, 5), torch.float16),
    "odd channels of fp32": ((5, 3, 21), (3, 5), torch.float32),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_what_is_not_cut_into_parts_is_as_exact(interpreted: Callable[..., Any], name: str) -> None:
    size, patches, dtype = LIBRARY[name]
    given = tensors_of(size, 1, patches, (1, 1), dtype)
    assert not goes_in_parts(given["x"], given["weight"])
    assert_as_exact_as_torch(interpreted(FORWARD, *given.values(), eps=EPS), given)


@pytest.mark.parametrize("name", ["x", "weight"])
def test_planes_are_left_to_a_library(interpreted: Callable[..., Any], name: str) -> None:
    given = tensors_of((64, 2, 64), 2, (3, 5), (1, 1))
    given[name] = given[name].contiguous()
    assert not goes_in_parts(given["x"], given["weight"])
    assert_as_exact_as_torch(interpreted(FORWARD, *given.values(), eps=EPS), given)


def amid(x: Tensor) -> Tensor:
    """Maps and rows of pixels with NaN between them, as a cut-out of every other of larger maps has them."""
    batch, channels, height, width = x.shape
    whole = torch.full((2 * batch, height + 5, width + 3, channels), float("nan"), dtype=x.dtype)
    return whole[::2, 2 : height + 2, 1 : width + 1].permute(0, 3, 1, 2).copy_(x)


@pytest.mark.parametrize("size", [(64, 2, 64), (32, 8, 128)])
@pytest.mark.parametrize("rest", [(0, 0), (1, 1)])
def test_a_view_is_read_in_place(
    in_parts: Callable[..., Tensor], by_library: Callable[..., Tensor], size: tuple[int, int, int], rest: Any
) -> None:
    given = tensors_of(size, 3, (3, 5), rest)
    view = {**given, "x": amid(given["x"])}
    x = view["x"]
    assert x.stride(2) > x.shape[3] * x.shape[1] and x.stride(0) > x.shape[2] * x.stride(2)
    for processors in PROCESSORS:
        assert torch.equal(in_parts(processors, view), in_parts(processors, given))
    assert torch.equal(by_library(view), by_library(given))


def test_vectors_may_be_strided(in_parts: Callable[..., Tensor], by_library: Callable[..., Tensor]) -> None:
    given = tensors_of((64, 2, 64))
    strided = dict(given)
    for name in ("bias", "norm_weight", "norm_bias"):
        strided[name] = torch.stack((given[name], torch.full_like(given[name], float("nan"))), 1)[:, 0]
    assert torch.equal(in_parts(16, strided), in_parts(16, given))
    assert torch.equal(by_library(strided), by_library(given))


def test_a_patch_that_is_no_number_is_one_row(in_parts: Callable[..., Tensor]) -> None:
    given = tensors_of((64, 2, 128), 2, (5, 7))
    expected = in_parts(16, given)
    given["x"][0, 3, 9, 13], given["x"][1, 63, 0, 0] = float("nan"), float("inf")
    out = in_parts(16, given)
    lost = out.isnan().any(2)
    assert lost.nonzero().tolist() == [[0, 34], [1, 0]] and out[lost].isnan().all()
    assert torch.equal(out[~lost], expected[~lost])


@pytest.mark.parametrize("way", ["in_parts", "by_library"])
def test_what_is_normalized_is_the_rounded_sum(request: pytest.FixtureRequest, way: str) -> None:
    """2048 + 1 is 2048 in half precision, so LayerNorm has no variance to enlarge."""
    given = tensors_of((64, 2, 64))
    given["x"], given["bias"] = torch.ones_like(given["x"]), torch.full_like(given["bias"], 2048.0)
    given["weight"].zero_()[::2, 0, 0, 0] = 1.0
    call = request.getfixturevalue(way)
    out = call(given) if way == "by_library" else call(170, given)
    assert torch.equal(out, given["norm_bias"].expand_as(out))


def test_eps_is_part_of_the_variance(in_parts: Callable[..., Tensor], by_library: Callable[..., Tensor]) -> None:
    given = tensors_of((64, 2, 320))
    assert_as_exact_as_torch(in_parts(170, given, eps=1.0), given, eps=1.0)
    assert_as_exact_as_torch(by_library(given, eps=1.0), given, eps=1.0)


def between_margins(given: dict[str, Tensor], processors: int) -> tuple[Tensor, int]:
    """Where kernels are interpreted: a launch, and how many values were written beside what it allocates."""
    with margins() as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "multiprocessors", lambda _: processors)
        out = launch.patch_norm_forward(*given.values(), eps=EPS)
    assert len(made.whole) == 2  # parts and result
    return out.clone(), made.touched()


@pytest.mark.parametrize("channels_out", [64, 320])
def test_nothing_outside_is_written(interpreted: Callable[..., Any], in_parts: Any, channels_out: int) -> None:
    """Rows end in the middle of a block."""
    given = tensors_of((64, 2, channels_out), 1, (37, 1), (1, 1))
    for processors in PROCESSORS:
        out, touched = interpreted("test_patch:between_margins", given, processors)
        assert touched == 0
        assert torch.equal(out, in_parts(processors, given))


def test_a_sum_has_as_many_parts_as_fill_the_gpu() -> None:
    assert [parts_of(4096, 8, processors=processors) for processors in (1, 8, 9, 16, 132, 170)] == [1, 1, 2, 2, 32, 32]
    assert parts_of(64, 1, processors=170) == 1 and parts_of(128, 1, processors=170) == 2
    assert parts_of(192, 1, processors=170) == 1  # an odd number of blocks
    assert parts_of(1280, 10, processors=132) == 4  # 320 values; 160 would be no whole number of blocks
    assert parts_of(4096, 1, processors=132) == 64
    for values in range(64, 4096, 64):
        for programs in (1, 3, 10):
            for processors in GPUS:
                parts = parts_of(values, programs, processors=processors)
                assert parts & (parts - 1) == 0 and values % (64 * parts) == 0
                assert programs * parts >= processors or values % (128 * parts)
                assert parts == 1 or programs * parts < 2 * processors  # and not more than that


def test_what_goes_in_parts() -> None:
    def goes(size: tuple[int, int, int] = (64, 2, 64), patches: tuple[int, int] = (3, 5), **more: Any) -> bool:
        given = tensors_of(size, 1, patches, **more)
        return goes_in_parts(given["x"], given["weight"])

    assert goes() and goes(dtype=torch.bfloat16) and not goes(dtype=torch.float32)
    assert goes((32, 2, 64)) and not goes((32, 1, 64)) and not goes((48, 2, 64))
    assert not goes((64, 2, 96)) and goes((64, 2, 128))
    few = (32, FEW_PATCHES // 32)
    assert goes((64, 1, 64), few) and not goes((64, 1, 64), (few[0] + 1, few[1]))
    assert goes((64, 2, 64), (32, 64), rest=(1, 1))  # what is left over is no patch
    weight = torch.empty(64, 2, 2, 64, dtype=torch.float16).permute(0, 3, 1, 2)
    far = torch.empty_strided((1, 64, 2, 2), (2**32, 1, 2**30, 64), dtype=torch.float16, device="meta")
    assert not goes_in_parts(far, weight)


def model_patches() -> set[tuple[int, int, int]]:
    """Channels, kernel and resulting channels of all models' summaries, and of patch embeddings of feature maps."""
    found = set()
    for spec in map(get_spec, list_models()):
        dims = spec.embed_dims
        found |= {(dims[i], ratio, dims[i]) for i, ratio in enumerate(spec.sr_ratios) if ratio > 1}
        found |= {(dims[i], 2, dims[i + 1]) for i in range(3)}
    return found


def cut_in_models() -> set[tuple[int, int, int]]:
    """Those whose few patches go in parts."""
    return {size for size in model_patches() if size[0] * size[1] % 64 == size[2] % 64 == 0}


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in cases(90)]
    channels_out = {channels_out for _, _, channels_out in MODEL_PATCHES}
    assert len(set(names)) == len(names) == 2 * (len(MODEL_PATCHES) + len(channels_out))
    expected = {"patch_product fp16 0 8x8 of 64 channels to 64", "add_parts_norm bf16 0 320 channels"}
    assert expected <= set(names)


def test_cases_are_of_models() -> None:
    assert cut_in_models() <= set(MODEL_PATCHES) <= model_patches()
    assert model_patches() - cut_in_models() == {(96, 8, 96)}  # 96 is no whole number of blocks
    assert {channels_out for _, _, channels_out in model_patches()} <= set(layer_norm.MODEL_CHANNELS)  # a library's way


class Recorder:
    """A kernel that keeps what it was launched with."""

    def __init__(self, launched: list[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]]) -> None:
        self._launched = launched

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self._launched.append((grid, args, options))


@pytest.mark.parametrize("size", sorted(cut_in_models()), ids=str)
@pytest.mark.parametrize("processors", GPUS)
def test_every_launch_of_a_model_is_a_case(
    monkeypatch: pytest.MonkeyPatch, processors: int, size: tuple[int, int, int]
) -> None:
    """However many parts there are: their number and length are arguments that no kernel is compiled for."""
    pytest.importorskip("triton", reason="Triton is not installed")
    kernels = importlib.import_module("twins_trt.kernels.patch.kernel")
    unspecialized = {
        name: {parameter.name for parameter in getattr(kernels, name).params if parameter.do_not_specialize}
        for name in ("patch_product_kernel", "add_parts_norm_kernel")
    }
    assert {"rows", "height", "width", "depth"} <= unspecialized["patch_product_kernel"]
    assert {"rows", "parts"} <= unspecialized["add_parts_norm_kernel"]
    launched: list[Any] = []
    for name in unspecialized:
        monkeypatch.setattr(kernels, name, Recorder(launched))
    monkeypatch.setattr(launch, "multiprocessors", lambda _: processors)
    made = {(case.kernel.partition(":")[2], case.tiling) for case in cases(90) if case.dtype == "fp16"}
    channels, side, channels_out = size
    assert {
        ("patch_product_kernel", product_tiling(*size)),
        ("add_parts_norm_kernel", norm_tiling(channels_out)),
    } <= made
    for height, width in ((1, 1), (7, 7), (8, 8), (16, 16), (16, 32), (23, 31), (32, 64)):
        x = torch.empty(1, height * side + 1, width * side, channels, dtype=torch.float16).permute(0, 3, 1, 2)
        weight = torch.empty(channels_out, side, side, channels, dtype=torch.float16).permute(0, 3, 1, 2)
        assert goes_in_parts(x, weight)
        launched.clear()
        launch.patch_norm_forward(x, weight, *(torch.empty(channels_out, dtype=torch.float16),) * 3, eps=EPS)
        (grid, args, options), (_, norm_args, norm_options) = launched
        assert options == product_tiling(*size).options and norm_options == norm_tiling(channels_out).options
        s_b, s_h, rows, _, _, depth = args[3:]
        assert s_b % 16 == s_h % 16 == 0  # what the cases say
        assert grid[0] * 64 == channels_out and grid[1] == -(-rows // 32) and rows == height * width
        assert grid[2] * depth == channels * side * side and depth % 64 == 0
        assert args[2].shape == (grid[2], rows, channels_out) and norm_args[5:7] == (rows, grid[2])


@pytest.mark.parametrize("name", ["64 channels to 64", "320 channels to 512"])
def test_16_bit_loads_are_16_bytes_wide(name: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    case = next(c for c in cases(87) if c.name.startswith("patch_product fp16") and c.name.endswith(name))
    resources = compile_case(case, "sm_87").resources
    assert (resources.narrow_loads, resources.spills) == (0, 0) and resources.wide_loads >= 3


def registered() -> dict[str, Tensor]:
    return tensors_of((6, 2, 24), 2, (3, 5), (0, 1), torch.float32)


@pytest.mark.parametrize("planes", [False, True])
def test_the_operator_is_registered_in_full(planes: bool) -> None:
    given = {name: x.nan_to_num() for name, x in registered().items()}
    if planes:
        given["x"] = given["x"].contiguous()
    arguments = (*given.values(), EPS)
    assert set(opcheck(patch_norm_op, arguments).values()) == {"SUCCESS"}
    out = patch_norm_op(*arguments)
    assert out.is_contiguous() and torch.equal(out, patch_norm_reference(*given.values(), eps=EPS))


@pytest.mark.parametrize("size", [(64, 8, 64), (5, 3, 21)], ids=str)
@pytest.mark.parametrize("rest", [(0, 0), (1, 2)])
def test_shapes_are_known_without_values(size: tuple[int, int, int], rest: tuple[int, int]) -> None:
    given = tensors_of(size, 2, (3, 5), rest)
    out = patch_norm_op(*(x.to("meta") for x in given.values()), EPS)
    assert out.shape == (2, 15, size[2]) and out.is_contiguous() and out.dtype == torch.float16


def test_the_operator_compiles_and_exports() -> None:
    x, *others = registered().values()
    x = x[..., :10]
    compiled = torch.compile(
        lambda x: patch_norm_op(x * 2, *others, EPS) + 1, fullgraph=True, backend="aot_eager", dynamic=True
    )
    for z in (x, x[:, :, :4, :7]):
        assert torch.equal(compiled(z), patch_norm_op(z * 2, *others, EPS) + 1)

    class Embed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return patch_norm(x, *others, eps=EPS, backend="triton")

    program = torch.export.export(Embed(), (x,))
    assert not any("twins_trt" in str(node.target) for node in program.graph.nodes)


def test_outside_a_gpu_it_is_the_plain_model_to_the_bit() -> None:
    given = registered()
    conv, norm = nn.Conv2d(6, 24, 2, 2), nn.LayerNorm(24, eps=EPS)
    conv.load_state_dict({name: given[name] for name in ("weight", "bias")})
    norm.load_state_dict({name: given[f"norm_{name}"] for name in ("weight", "bias")})
    with torch.no_grad():
        expected = norm(conv(given["x"]).flatten(2).transpose(1, 2))
        assert not expected.isnan().any()
        assert torch.equal(patch_norm(*given.values(), eps=EPS), expected)


def test_the_reference_has_a_gradient() -> None:
    given = {name: x.double().requires_grad_() for name, x in tensors_of((3, 2, 16), 1, (1, 2)).items()}
    assert torch.autograd.gradcheck(lambda *tensors: patch_norm(*tensors, eps=EPS), tuple(given.values()))


def test_the_public_function_reaches_the_kernel(interpreted: Callable[..., Any]) -> None:
    given = tensors_of((64, 2, 64))
    from_kernel = torch.full((1, 15, 64), 3.0, dtype=torch.float16)
    target, tensors = "twins_trt.kernels.patch.op:patch_norm", given.values()
    assert torch.equal(
        interpreted(target, *tensors, eps=EPS, backend="triton"), interpreted(FORWARD, *tensors, eps=EPS)
    )
    reference = interpreted("twins_trt.kernels.patch.reference:patch_norm_reference", *tensors, eps=EPS)
    for backend, expected in (("triton", from_kernel), ("auto", reference), ("reference", reference)):
        values = {"patch_norm_forward": from_kernel.clone()}
        out = interpreted("interpreter:call_with", values, target, *tensors, eps=EPS, backend=backend)
        assert torch.equal(out, expected)


SHAPES = {"x": (2, 5, 6, 4), "weight": (16, 5, 2, 2), "bias": (16,), "norm_weight": (16,), "norm_bias": (16,)}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": (5, 6, 4)}, r"a weight \[16, 5, 2, 2\] does not fit maps \[5, 6, 4\]"),
        ({"x": ()}, r"does not fit maps \[\]"),
        ({"x": (0, 5, 6, 4)}, r"does not fit maps \[0, 5, 6, 4\]"),
        ({"x": (2, 6, 6, 4)}, r"does not fit maps \[2, 6, 6, 4\]"),
        ({"x": (2, 5, 1, 4)}, r"does not fit maps \[2, 5, 1, 4\]"),
        ({"x": (2, 5, 6, 1)}, r"does not fit maps \[2, 5, 6, 1\]"),
        ({"weight": (16, 5, 2)}, r"a weight \[16, 5, 2\]"),
        ({"weight": (16,)}, r"a weight \[16\]"),
        ({"weight": (16, 5, 2, 4)}, r"a weight \[16, 5, 2, 4\]"),
        ({"weight": (16, 5, 0, 0)}, r"a weight \[16, 5, 0, 0\]"),
        ({"bias": (15,)}, r"bias \[15\] does not fit 16 channels"),
        ({"bias": ()}, r"bias \[\]"),
        ({"norm_weight": (1, 16)}, r"norm_weight \[1, 16\]"),
        ({"norm_bias": (17,)}, r"norm_bias \[17\]"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_named(changed: dict[str, tuple[int, ...]], said: str) -> None:
    assert patch_norm(*(torch.zeros(shape) for shape in SHAPES.values()), eps=EPS).shape == (2, 6, 16)
    with pytest.raises(UsageError, match=said):
        patch_norm(*(torch.zeros(shape) for shape in {**SHAPES, **changed}.values()), eps=EPS)


@pytest.mark.parametrize("name", SHAPES)
def test_dtypes_that_differ_are_named(name: str) -> None:
    given = tensors_of((32, 2, 32))
    with pytest.raises(UsageError, match=r"torch\.float16, torch\.float32"):
        patch_norm(*{**given, name: given[name].float()}.values(), eps=EPS)


def test_what_else_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(backend: str = "triton", channels_out: int = 32, dtype: torch.dtype = torch.float16) -> Tensor:
        return patch_norm(*tensors_of((32, 2, channels_out), dtype=dtype).values(), eps=EPS, backend=backend)

    with pytest.raises(UsageError, match=r"torch\.int64"):
        patch_norm(*(x.long() for x in tensors_of((32, 2, 32)).values()), eps=EPS)
    with pytest.raises(UsageError, match="patch_norm has no backend 'sdpa'"):
        call("sdpa")
    with pytest.raises(UsageError, match="patch_norm: 15 channels are not between 16 and 2048"):
        call(channels_out=15)
    with pytest.raises(UsageError, match="2049 channels"):
        call(channels_out=2049)
    with pytest.raises(UsageError, match=r"no kernel for torch\.float64"):
        call(dtype=torch.float64)
    assert call("auto", channels_out=15).shape == (1, 15, 15)
    pytest.importorskip("triton", reason="Triton is not installed")
    with pytest.raises(EngineError, match="do not run on a cpu tensor"):
        call()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(EngineError, match="patch_norm: Triton's interpreter computes bfloat16 wrongly"):
        call(dtype=torch.bfloat16)
    with pytest.raises(EngineError, match="computes bfloat16 wrongly"):
        torch.ops.twins_trt.patch_norm(*tensors_of((32, 2, 32), dtype=torch.bfloat16).values(), EPS)
    assert call("auto", dtype=torch.bfloat16).dtype == torch.bfloat16
