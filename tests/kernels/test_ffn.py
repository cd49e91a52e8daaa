"""The kernels of a block's second half in Triton's interpreter, and their operator, against torch's own in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import probe_operators
import pytest
import torch
import torch.nn.functional as F
from layouts import every_other, planes, rows_apart
from torch import Tensor, nn
from torch.library import opcheck

from twins_trt.errors import EngineError, UsageError
from twins_trt.kernels.crosscompile.compiler import compile_case
from twins_trt.kernels.ffn import add_norm_ffn, add_norm_ffn_reference
from twins_trt.kernels.ffn.launch import FUSED_CHANNELS, MODEL_SIZES, cases, fc1_tiling, ffn_tiling, way
from twins_trt.kernels.ffn.op import add_norm_ffn_op
from twins_trt.models.zoo import get_spec, list_models

FORWARD = "twins_trt.kernels.ffn.launch:add_norm_ffn_forward"
BY_WAY = "test_ffn:by_way"
EPS = 1e-6
ROWS = (1, 63, 65, 127, 131)
CHANNELS = (32, 64, 96, 128, 320, 512)
"""With twice as many hidden channels, or the next multiple of 128."""
WIDE = {"rows": 37, "channels": 320, "hidden": 640}


def tensors_of(
    rows: int, channels: int, hidden: int | None = None, dtype: torch.dtype = torch.float16
) -> dict[str, Tensor]:
    """Tokens [1, rows, channels] and weights that keep their size. Rows and channels have means that are not zero."""
    generator = torch.Generator().manual_seed(0)
    hidden = hidden or -(-2 * channels // 128) * 128

    def random(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale + shift).to(dtype)

    return {
        "x": random(1, rows, channels, scale=2.0, shift=1.5),
        "y": random(1, rows, channels),
        "norm_weight": random(channels, scale=0.3, shift=1.0),
        "norm_bias": random(channels, scale=0.5),
        "weight1": random(hidden, channels, scale=1.5 * channels**-0.5),
        "bias1": random(hidden),
        "weight2": random(channels, hidden, scale=2.0 * hidden**-0.5),
        "bias2": random(channels, scale=3.0),
    }


def by_way(chosen: str, given: dict[str, Tensor], *, eps: float = EPS) -> Tensor:
    """Where kernels are interpreted: computed so, whatever the sizes would be computed by."""
    return probe_operators.by_way(chosen, *given.values(), eps=eps)


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).abs().max())


def assert_as_exact_as_torch(out: Tensor, given: dict[str, Tensor], *, eps: float = EPS) -> None:
    exact = add_norm_ffn_reference(*(x.double() for x in given.values()), eps=eps)
    theirs = add_norm_ffn_reference(*given.values(), eps=eps)
    assert out.dtype == given["x"].dtype and out.shape == given["x"].shape and out.is_contiguous()
    # a few roundings of fp32, which torch may have been lucky with in a single row
    roundings = torch.finfo(torch.float32).eps * float(exact.abs().max())
    assert error(out, exact) <= 2 * max(error(theirs, exact), roundings)
    # most of the largest error is the last rounding, so all are held too
    assert (out.double() - exact).norm() <= 1.5 * max(
        float((theirs.double() - exact).norm()), roundings * out.numel() ** 0.5
    )


@pytest.mark.parametrize("channels", [channels for channels in CHANNELS if channels <= FUSED_CHANNELS])
@pytest.mark.parametrize("rows", ROWS)
def test_one_kernel_is_as_exact_as_torch(interpreted: Callable[..., Any], rows: int, channels: int) -> None:
    given = tensors_of(rows, channels)
    assert_as_exact_as_torch(interpreted(BY_WAY, "fused", given), given)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rows", ROWS)
def test_kernels_apart_are_as_exact_as_torch(interpreted: Callable[..., Any], rows: int, channels: int) -> None:
    given = tensors_of(rows, channels)
    assert_as_exact_as_torch(interpreted(BY_WAY, "apart", given), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "channels", "hidden"), [(1, 16, 3), (65, 40, 72), (7, 320, 1280)])
def test_products_of_torch_are_as_exact(
    interpreted: Callable[..., Any], rows: int, channels: int, hidden: int, dtype: torch.dtype
) -> None:
    given = tensors_of(rows, channels, hidden, dtype)
    assert_as_exact_as_torch(interpreted(BY_WAY, "plain", given), given)


@pytest.mark.parametrize(("rows", "channels", "hidden"), [(130, 32, 128), (257, 96, 384), (63, 64, 256)])
def test_fc1_is_a_product_and_gelu(interpreted: Callable[..., Any], rows: int, channels: int, hidden: int) -> None:
    """In larger blocks and in smaller ones, which few rows get: sums are added in one order in both."""
    given = tensors_of(rows, channels, hidden)
    x, weight, bias = given["x"][0], given["weight1"], given["bias1"]
    out = interpreted("twins_trt.kernels.ffn.launch:fc1", x, weight, bias)
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    theirs = F.gelu(F.linear(x, weight, bias))
    assert out.shape == (rows, hidden) and out.dtype == torch.float16
    assert error(out, exact) <= 2 * error(theirs, exact)
    for small in (False, True):
        cut = fc1_tiling(channels, hidden, small=small)
        assert torch.equal(interpreted("twins_trt.kernels.ffn.launch:fc1", x, weight, bias, cut=cut), out)


def test_gelu_is_near_the_exact_one(interpreted: Callable[..., Any]) -> None:
    x = torch.linspace(-12, 12, 2**18)
    out = interpreted("probe_kernels:gelus", x)
    assert error(out, F.gelu(x.double())) <= 4e-5
    assert (out[x < 0] <= 0).all() and torch.equal(out[x >= 5], x[x >= 5]) and not out[x <= -5].any()
    # half precision rounds most of what a normal distribution draws by more than that
    drawn = torch.randn(2**18, generator=torch.Generator().manual_seed(0))
    exact = F.gelu(drawn.double())
    rounded = interpreted("probe_kernels:gelus", drawn).half().double() - exact
    assert rounded.norm() <= 1.02 * (exact.half().double() - exact).norm()


def test_gelu_of_what_is_no_number(interpreted: Callable[..., Any]) -> None:
    """x · Φ(x) in floating point, as float64 has it in torch: minus infinity times nothing is no number."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([inf, -inf, nan, -3e38, 3e38, -65504.0, 0.0, -0.0])
    out = interpreted("probe_kernels:gelus", x)
    expected = [inf, nan, nan, 0.0, 3e38, 0.0, 0.0, 0.0]
    torch.testing.assert_close(out, torch.tensor(expected), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(F.gelu(x.double()).float(), out, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("chosen", ["fused", "apart"])
def test_a_row_that_is_no_number_is_one_row(interpreted: Callable[..., Any], chosen: str) -> None:
    given = tensors_of(65, 64)
    expected = interpreted(BY_WAY, chosen, given)
    given["x"][0, 64, 3] = float("nan")
    given["y"][0, 7, 5] = float("inf")
    out = interpreted(BY_WAY, chosen, given)
    lost = out[0].isnan().any(1)
    assert lost.nonzero().flatten().tolist() == [7, 64] and out[0][lost].isnan().all()
    assert torch.equal(out[0][~lost], expected[0][~lost])


@pytest.mark.parametrize("chosen", ["fused", "apart"])
def test_nothing_outside_is_written(interpreted: Callable[..., Any], chosen: str) -> None:
    """Rows end in the middle of a block."""
    given = tensors_of(65, 96)
    out, touched = interpreted("probe_operators:between_margins", chosen, *given.values(), eps=EPS)
    assert touched == 0
    assert torch.equal(out, interpreted(BY_WAY, chosen, given))


def test_a_large_mean_takes_nothing_from_the_variance(interpreted: Callable[..., Any]) -> None:
    """The mean of the squares less the square of the mean would be wrong in its first digit here."""
    given = tensors_of(5, 96)
    given["x"] = (given["x"] / 64).round() + 1024  # their sums with y are exact in half precision
    given["y"] = given["y"].round()
    assert_as_exact_as_torch(interpreted(BY_WAY, "fused", given), given)


def test_eps_is_part_of_the_variance(interpreted: Callable[..., Any]) -> None:
    given = tensors_of(3, 64)
    for chosen in ("fused", "apart"):
        assert_as_exact_as_torch(interpreted(BY_WAY, chosen, given, eps=1.0), given, eps=1.0)
    given["x"], given["y"] = torch.full_like(given["x"], 7.0), torch.full_like(given["y"], -3.0)  # no variance
    assert_as_exact_as_torch(interpreted(BY_WAY, "fused", given), given)


@pytest.mark.parametrize("chosen", ["fused", "apart", "plain"])
def test_what_is_normalized_is_the_rounded_sum(interpreted: Callable[..., Any], chosen: str) -> None:
    """2048 + 1 is 2048 in half precision, so LayerNorm has no variance to enlarge."""
    given = tensors_of(3, 64)
    given["x"], given["y"] = torch.full_like(given["x"], 2048.0), (given["y"] > 0).half()
    out, theirs = interpreted(BY_WAY, chosen, given), add_norm_ffn_reference(*given.values(), eps=EPS)
    assert (out - theirs).abs().max() <= 2  # a rounding there; one of another sum would be off by ten


@pytest.mark.parametrize("chosen", ["fused", "apart"])
@pytest.mark.parametrize("form", [rows_apart, planes, every_other])
def test_strides_do_not_matter(interpreted: Callable[..., Any], form: Callable[[Tensor], Tensor], chosen: str) -> None:
    given = tensors_of(2 * 35, 64)
    for name in ("x", "y"):
        given[name] = given[name].view(2, 35, 64)
    expected = interpreted(BY_WAY, chosen, given)
    for names in (("x",), ("y",), ("x", "y")):
        out = interpreted(BY_WAY, chosen, {**given, **{name: form(given[name]) for name in names}})
        assert torch.equal(out, expected) and out.is_contiguous()
    weights = {name: given[name].t().contiguous().t() for name in ("weight1", "weight2")}
    vectors = {
        name: torch.stack((given[name],) * 2, 1)[:, 0] for name in ("norm_weight", "norm_bias", "bias1", "bias2")
    }
    assert torch.equal(interpreted(BY_WAY, chosen, {**given, **weights, **vectors}), expected)


def test_the_way_follows_from_dtype_and_sizes() -> None:
    h200 = {"dtype": "fp16", "processors": 132}
    enough = 64 * 132
    assert [way(enough, channels, 4 * channels, **h200) for channels in (32, 64, 96, 128)] == ["fused"] * 4
    assert way(enough - 1, 64, 256, **h200) == "apart"  # too few programs
    assert way(enough, 160, 640, **h200) == way(enough, 1024, 4096, **h200) == "apart"
    assert way(enough, 64, 256, dtype="bf16", processors=132) == "fused"
    assert way(enough, 64, 256, dtype="fp32", processors=132) == "plain"
    assert way(enough, 72, 256, **h200) == way(enough, 64, 192, **h200) == way(1, 40, 100, **h200) == "plain"


@pytest.mark.parametrize(
    ("sizes", "dtype", "chosen"),
    [
        ({"rows": 65, "channels": 64}, torch.float16, "fused"),
        ({"rows": 63, "channels": 64}, torch.float16, "apart"),
        (WIDE, torch.float16, "apart"),
        ({"rows": 65, "channels": 64}, torch.float32, "plain"),
        ({"rows": 65, "channels": 40, "hidden": 100}, torch.float16, "plain"),
    ],
)
def test_the_launch_takes_the_way(
    interpreted: Callable[..., Any], sizes: dict[str, int], dtype: torch.dtype, chosen: str
) -> None:
    given = tensors_of(**sizes, dtype=dtype)
    out = interpreted(FORWARD, *given.values(), eps=EPS)
    assert torch.equal(out, interpreted(BY_WAY, chosen, given))


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in cases(90)]
    fused = sum(channels <= FUSED_CHANNELS for channels, _ in MODEL_SIZES)
    assert len(set(names)) == len(names) == 2 * (fused + 2 * len(MODEL_SIZES))
    assert {"ffn fp16 0 64 channels, 256 hidden", "fc1 bf16 0 320 channels, 1280 hidden small"} <= set(names)


def test_every_launch_of_a_model_is_a_case() -> None:
    specs = [get_spec(name) for name in list_models()]
    sizes = {
        (channels, channels * ratio)
        for spec in specs
        for channels, ratio in zip(spec.embed_dims, spec.mlp_ratios, strict=True)
    }
    made = {(case.dtype, case.tiling) for case in cases(90)}
    for channels, hidden in sizes:
        assert channels % 32 == hidden % 128 == 0
        launched = [fc1_tiling(channels, hidden, small=small) for small in (False, True)]
        if channels <= FUSED_CHANNELS:
            launched.append(ffn_tiling(channels, hidden))
        assert {(dtype, each) for dtype in ("fp16", "bf16") for each in launched} <= made, (channels, hidden)
    assert set(MODEL_SIZES) <= sizes  # and nothing is compiled for nobody


@pytest.mark.parametrize("name", ["ffn fp16 0 64 channels, 256 hidden", "fc1 fp16 0 320 channels, 1280 hidden"])
def test_16_bit_loads_are_16_bytes_wide(name: str) -> None:
    """Those of the weights and of the rows; the vectors are few."""
    pytest.importorskip("triton", reason="Triton is not installed")
    resources = compile_case(next(case for case in cases(87) if case.name == name), "sm_87").resources
    assert resources.spills == 0 and resources.wide_loads >= 16


@functools.cache
def registered() -> dict[str, Tensor]:
    return tensors_of(10, 24, 48, torch.float32)


def test_the_operator_is_registered_in_full() -> None:
    given = registered()
    for x in (given["x"], planes(given["x"])):
        arguments = (*{**given, "x": x}.values(), EPS)
        assert set(opcheck(add_norm_ffn_op, arguments).values()) == {"SUCCESS"}
        out = add_norm_ffn_op(*arguments)
        assert out.is_contiguous() and torch.equal(out, add_norm_ffn_reference(*arguments[:-1], eps=EPS))


def test_the_operator_compiles_and_exports() -> None:
    x, *others = registered().values()
    compiled = torch.compile(
        lambda x: add_norm_ffn_op(x * 2, *others, EPS) + 1, fullgraph=True, backend="aot_eager", dynamic=True
    )
    for z, y in ((x, others[0]), (x[:, :7], others[0][:, :7])):
        others[0] = y
        assert torch.equal(compiled(z), add_norm_ffn_op(z * 2, *others, EPS) + 1)
    others[0] = registered()["y"]

    class Half(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return add_norm_ffn(x, *others, eps=EPS, backend="triton")

    program = torch.export.export(Half(), (x,))
    assert not any("twins_trt" in str(node.target) for node in program.graph.nodes)


def test_outside_a_gpu_it_is_the_plain_model_to_the_bit() -> None:
    given = registered()
    norm, fc1, fc2 = nn.LayerNorm(24, eps=EPS), nn.Linear(24, 48), nn.Linear(48, 24)
    norm.load_state_dict({name: given[f"norm_{name}"] for name in ("weight", "bias")})
    for linear, i in ((fc1, 1), (fc2, 2)):
        linear.load_state_dict({name: given[f"{name}{i}"] for name in ("weight", "bias")})
    with torch.no_grad():
        x = given["x"] + given["y"]
        assert torch.equal(add_norm_ffn(*given.values(), eps=EPS), x + fc2(nn.GELU()(fc1(norm(x)))))


def test_the_reference_has_a_gradient() -> None:
    given = {name: x.double().requires_grad_() for name, x in tensors_of(2, 16, 16).items()}
    assert torch.autograd.gradcheck(lambda *tensors: add_norm_ffn(*tensors, eps=EPS), tuple(given.values()))


def test_the_public_function_reaches_the_kernel(interpreted: Callable[..., Any]) -> None:
    given, from_kernel = tensors_of(65, 64), torch.full((1, 65, 64), 3.0, dtype=torch.float16)
    target, tensors = "twins_trt.kernels.ffn.op:add_norm_ffn", given.values()
    assert torch.equal(
        interpreted(target, *tensors, eps=EPS, backend="triton"), interpreted(FORWARD, *tensors, eps=EPS)
    )
    reference = add_norm_ffn_reference(*tensors, eps=EPS)
    for backend, expected in (("triton", from_kernel), ("auto", reference), ("reference", reference)):
        values = {"add_norm_ffn_forward": from_kernel.clone()}
        out = interpreted("interpreter:call_with", values, target, *tensors, eps=EPS, backend=backend)
        assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": (96,), "y": (96,)}, r"tokens \[96\] and \[96\]"),
        ({"x": (), "y": ()}, r"tokens \[\] and \[\]"),
        ({"x": (2, 0, 96), "y": (2, 0, 96)}, r"tokens \[2, 0, 96\]"),
        ({"y": (5, 96)}, r"tokens \[2, 5, 96\] and \[5, 96\] do not fit"),
        ({"norm_weight": (95,)}, r"norm_weight \[95\] does not fit tokens \[2, 5, 96\]"),
        ({"norm_bias": (1, 96)}, r"norm_bias \[1, 96\]"),
        ({"weight1": (96, 128)}, r"weight1 \[96, 128\]"),
        ({"bias1": (127,)}, r"weight1 \[128, 96\] does not fit"),
        ({"bias1": ()}, r"weight1 \[128, 96\] does not fit"),
        ({"weight2": (128, 96)}, r"weight2 \[128, 96\]"),
        ({"bias2": (128,)}, r"bias2 \[128\]"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_named(changed: dict[str, tuple[int, ...]], said: str) -> None:
    shapes = {"x": (2, 5, 96), "y": (2, 5, 96), "norm_weight": (96,), "norm_bias": (96,)}
    shapes |= {"weight1": (128, 96), "bias1": (128,), "weight2": (96, 128), "bias2": (96,)}
    assert add_norm_ffn(*(torch.zeros(shape) for shape in shapes.values()), eps=EPS).shape == (2, 5, 96)
    with pytest.raises(UsageError, match=said):
        add_norm_ffn(*(torch.zeros(shape) for shape in {**shapes, **changed}.values()), eps=EPS)


@pytest.mark.parametrize("name", tensors_of(1, 16))
def test_dtypes_that_differ_are_named(name: str) -> None:
    given = tensors_of(3, 32)
    with pytest.raises(UsageError, match=r"torch\.float16, torch\.float32"):
        add_norm_ffn(*{**given, name: given[name].float()}.values(), eps=EPS)


def test_what_else_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors_of(3, 32)

    def call(backend: str = "triton", **sizes: Any) -> Tensor:
        return add_norm_ffn(*tensors_of(**{"rows": 3, "channels": 32, **sizes}).values(), eps=EPS, backend=backend)

    with pytest.raises(UsageError, match=r"torch\.int64"):
        add_norm_ffn(*(x.long() for x in given.values()), eps=EPS)
    with pytest.raises(UsageError, match="a hidden layer of no channels"):
        empty = {"weight1": given["weight1"][:0], "bias1": given["bias1"][:0], "weight2": given["weight2"][:, :0]}
        add_norm_ffn(*{**given, **empty}.values(), eps=EPS)
    with pytest.raises(UsageError, match="add_norm_ffn has no backend 'sdpa'"):
        call("sdpa")
    with pytest.raises(UsageError, match="add_norm_ffn: 15 channels are not between 16 and 2048"):
        call(channels=15)
    with pytest.raises(UsageError, match="2049 channels"):
        call(channels=2049, hidden=1)
    with pytest.raises(UsageError, match=r"no kernel for torch\.float64"):
        call(dtype=torch.float64)
    assert call("auto", channels=15).shape == (1, 3, 15)
    pytest.importorskip("triton", reason="Triton is not installed")
    with pytest.raises(EngineError, match="do not run on a cpu tensor"):
        call()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    half = {"dtype": torch.bfloat16}
    with pytest.raises(EngineError, match="add_norm_ffn: Triton's interpreter computes bfloat16 wrongly"):
        call(**half)
    with pytest.raises(EngineError, match="computes bfloat16 wrongly"):
        torch.ops.twins_trt.add_norm_ffn(*tensors_of(3, 32, **half).values(), EPS)
    assert call("auto", **half).dtype == torch.bfloat16
