"""Every launch through Triton's real binder for a GPU that is not there: bound, specialised, compiled, not launched.

`compile_case` compiles a `Case` as it says it is called. Here the launches themselves call: Triton sees the arguments,
specialises on those that are 1 or multiples of 16, and picks or makes a kernel, as it does on a GPU. To see it:

    python tests/kernels/binder.py --target sm_90 [--all] [--verbose]

In a process of its own, because a kernel keeps the target that it was first compiled for.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from twins_trt.kernels.bias.launch import bias_act_forward_
from twins_trt.kernels.case import Case, dtype_name
from twins_trt.kernels.crosscompile import Resources, all_cases, compile_case, problems, read_record
from twins_trt.kernels.crosscompile.compiler import capability, resources_of
from twins_trt.kernels.ffn import launch as ffn
from twins_trt.kernels.gsa import launch as gsa
from twins_trt.kernels.layer_norm.launch import MODEL_CHANNELS, add_layer_norm_forward
from twins_trt.kernels.lsa import launch as lsa
from twins_trt.kernels.patch import launch as patch
from twins_trt.kernels.position.launch import add_position_forward
from twins_trt.kernels.postprocess import launch as postprocess
from twins_trt.kernels.preprocess import launch as preprocess
from twins_trt.kernels.resize.launch import resize_add_forward

MULTIPROCESSORS = 132

Launch = tuple[str, Callable[[], object]]


@dataclass(frozen=True)
class Bound:
    """A kernel that a launch made. case: the one that describes it, None where none does (tf32 on request)."""

    launch: str
    kernel: str
    case: Case | None
    resources: Resources

    def faults(self, expected: Resources | None, target: str) -> list[str]:
        """What is wrong with it. expected: what `case` takes."""
        found = problems(self.resources, target)
        if expected is not None:
            if self.resources.wide_loads == 0 < expected.wide_loads:
                found.append(f"has no 16-byte loads, {expected.wide_loads} are recorded")
            if self.resources.narrow_loads > expected.narrow_loads:
                found.append(f"has {self.resources.narrow_loads} narrow loads, {expected.narrow_loads} are recorded")
        return found


class _Utils:
    """Of a driver: all that compiling asks is answered with 0."""

    def load_binary(self, *_: object) -> tuple[int, ...]:
        return 0, 0, 255, 0, 1024

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024, "multiprocessor_count": MULTIPROCESSORS, "warpSize": 32}

    def __getattr__(self, _: str) -> Callable[..., int]:
        return lambda *args, **kwargs: 0


class _Driver:
    """One GPU of the target."""

    utils = _Utils()

    def __init__(self, sm: int) -> None:
        self._sm = sm

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._sm, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher_cls(self, *_: object) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def bind(target: str, launches: Iterator[Launch]) -> list[Bound]:
    """Calls the launches for `target`, and returns every kernel that they made, once.

    The process keeps the target: it launches nothing for a real GPU afterwards, and binds for no other target.
    Raises what Triton raises where it cannot bind or compile.
    """
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    sm = capability(target)
    driver.set_active(_Driver(sm))
    for module in (lsa, gsa, ffn, patch, postprocess):
        for name, value in (("capability", sm), ("multiprocessors", MULTIPROCESSORS)):
            if hasattr(module, name):
                setattr(module, name, lambda _, value=value: value)
    cases = all_cases(target)
    found: dict[tuple[str, str], Bound] = {}
    compile_only = JITFunction.run
    current = [""]

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = compile_only(self, *args, grid=grid, warmup=True, **options)
        key = (self.__name__, kernel.hash)
        if key not in found:
            case = _case_of(cases, self, args, options)
            found[key] = Bound(current[0], self.__name__, case, resources_of(kernel, f"{self.__name__} for {target}"))
        return kernel

    JITFunction.run = run
    try:
        for current[0], launch in launches:
            launch()
    finally:
        JITFunction.run = compile_only
    return list(found.values())


def _case_of(cases: list[Case], kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Case | None:
    """The case with the launch's tiling and dtypes."""
    tensors = {name: x for name, x in zip(kernel.arg_names, args, strict=False) if isinstance(x, Tensor)}
    for case in cases:
        if case.function() is kernel and case.tiling.options.items() <= options.items():
            fixed = {name for name, _ in case.types}
            wanted = {name: "fp32" if name in case.float32 else case.dtype for name in tensors if name not in fixed}
            if all(dtype_name(tensors[name].dtype) == dtype for name, dtype in wanted.items()):
                return case
    return None


def check(target: str, launches: Iterator[Launch]) -> tuple[list[Bound], dict[str, list[str]]]:
    """All kernels of the launches, and the faults of those that have any, by launch and kernel."""
    import triton

    record = read_record()
    bound = bind(target, launches)
    faults = {}
    for each in bound:
        expected = None
        if each.case is not None:
            recorded = record.resources.get(each.case.name, {}).get(target)
            same = triton.__version__ == record.triton and recorded is not None
            expected = recorded if same else compile_case(each.case, target).resources
        if found := each.faults(expected, target):
            faults[f"{each.launch}: {each.case.name if each.case else each.kernel}"] = found
    return bound, faults


DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def quick_launches() -> Iterator[Launch]:
    """What inference in float16 launches, on the models' path."""
    half = torch.float16
    for name in ("stage 1 of SVT-S", "one axis padded"):
        yield from attention_launches("lsa", name, half, backward=False)
    yield from attention_launches("gsa", "stage 1 of SVT-S", half, backward=False)
    yield from mask_launches(half, "padded classes", ((128, 96), (31, 53)), probability=False)
    yield from input_launches(half, ((37, 53),), channels_last=True)
    yield from norm_launches(half, (64,))
    yield from ffn_launches(half, ((64, 256),))
    yield from patch_launches(half, ((64, 8, 64),))
    yield from map_launches(half, 64)


def all_launches() -> Iterator[Launch]:
    """Every operator, forward and backward, in every dtype, layout and precision.

    At the shapes of the GPU tests, and at those that the other cases need.
    """
    import test_on_gpu
    import test_on_gpu_around

    test_on_gpu.LSA_SHAPES |= {
        f"{batch} images, {width} wide, head dim {head_dim}": (batch, 28, width, 2, head_dim)
        for batch in (1, 256)  # enough windows for two heads a program
        for width in (28, 30)  # whole windows, and pads that attend
        for head_dim in lsa.HEAD_DIMS
    }
    test_on_gpu.GSA_SHAPES |= {
        f"{batch} images, {keys} keys, head dim {head_dim}": (batch, 2048, keys, 2, head_dim)
        for batch in (1, 16, 64)  # few queries, enough for the larger block, and for one part in backward
        for keys in (100, 128, 200, 256, 1000, 1024)
        for head_dim in gsa.HEAD_DIMS
    }
    shapes = [("lsa", name) for name in test_on_gpu.LSA_SHAPES] + [("gsa", name) for name in test_on_gpu.GSA_SHAPES]
    for dtype in DTYPES:
        for precision in ("highest", "high") if dtype == torch.float32 else ("highest",):
            torch.set_float32_matmul_precision(precision)
            for attention, name in shapes:
                yield from attention_launches(attention, name, dtype)
        torch.set_float32_matmul_precision("highest")
        for layout in test_on_gpu_around.LAYOUTS:
            for probability in (False, True):
                yield from mask_launches(dtype, layout, ((1, 1), (31, 53), (128, 96)), probability=probability)
                yield from mask_launches(dtype, layout, ((4, 4), (1, 1)), probability=probability, of=(1, 1, 1, 1))
                yield from mask_launches(dtype, layout, ((4, 28),), probability=probability, of=(2, 150, 1, 7))
        for channels_last in (False, True):
            yield from input_launches(dtype, ((37, 53), (96, 128), (1, 1)), channels_last=channels_last)
        yield from norm_launches(dtype, MODEL_CHANNELS)
        if dtype != torch.float32:
            yield from ffn_launches(dtype, ffn.MODEL_SIZES)
            yield from patch_launches(dtype, patch.MODEL_PATCHES)
        for channels in (64, 37, 1):
            yield from map_launches(dtype, channels)


def attention_launches(attention: str, name: str, dtype: torch.dtype, *, backward: bool = True) -> Iterator[Launch]:
    """Forward, then backward, on tensors without values. name: of a shape of the GPU tests."""
    import test_on_gpu

    words = f"{attention} {name} {dtype}"
    if attention == "lsa":
        batch, height, width, heads, head_dim = test_on_gpu.LSA_SHAPES[name]
        channels = heads * head_dim
        qkv, bias = torch.empty(batch, height, width, 3 * channels, dtype=dtype), torch.empty(3 * channels, dtype=dtype)
        grad = torch.empty(batch, height, width, channels, dtype=dtype)
        yield words, lambda: lsa.lsa_forward(qkv, bias, num_heads=heads)
        if backward:
            yield f"{words} backward", lambda: lsa.lsa_backward(grad, qkv, bias, num_heads=heads)
        return
    batch, queries, keys, heads, head_dim = test_on_gpu.GSA_SHAPES[name]
    channels = heads * head_dim
    q, kv = torch.empty(batch, queries, channels, dtype=dtype), torch.empty(batch, keys, 2 * channels, dtype=dtype)
    lse = torch.empty(batch, heads, queries)
    yield words, lambda: gsa.gsa_forward(q, kv, num_heads=heads)
    if backward:
        yield f"{words} backward", lambda: gsa.gsa_backward(q, q, kv, q, lse, num_heads=heads)


def mask_launches(
    dtype: torch.dtype,
    layout: str,
    sizes: tuple[tuple[int, int], ...],
    *,
    probability: bool,
    of: tuple[int, int, int, int] = (3, 150, 32, 24),
) -> Iterator[Launch]:
    """layout: as in the GPU tests. of: batch, classes, height and width of the logits."""
    import test_on_gpu_around

    test_on_gpu_around.DEVICE, test_on_gpu_around.LOGITS = "cpu", of
    logits = test_on_gpu_around.logits_of(dtype, layout)
    for size in sizes:
        words = f"resize_argmax {layout} {of} -> {size} {dtype}{' probability' if probability else ''}"
        yield words, lambda size=size: postprocess.resize_argmax_forward(logits, *size, probability=probability)


def input_launches(dtype: torch.dtype, sizes: tuple[tuple[int, int], ...], *, channels_last: bool) -> Iterator[Launch]:
    image = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    numbers = (1.5, 2.5, 3.5)
    for size in sizes:
        wanted = preprocess.InputFormat(*size, numbers, numbers, dtype, channels_last)
        words = f"resize_normalize {size} {dtype}{' channels last' if channels_last else ''}"
        yield words, lambda wanted=wanted: preprocess.resize_normalize_forward(image, wanted)


def norm_launches(dtype: torch.dtype, widths: Sequence[int]) -> Iterator[Launch]:
    for channels in widths:
        x, vector = torch.empty(2, 35, channels, dtype=dtype), torch.empty(channels, dtype=dtype)
        for words, y, row, after in (
            ("", None, None, None),
            (" residual", x, None, None),
            (" row", None, vector, None),
            (" residual, row after", x, None, vector),
        ):
            call = functools.partial(
                add_layer_norm_forward, x, y, vector, vector, eps=1e-5, row=row, keep_sum=y is not None, after=after
            )
            yield f"add_layer_norm {channels} {dtype}{words}", call


def ffn_launches(dtype: torch.dtype, sizes: Sequence[tuple[int, int]]) -> Iterator[Launch]:
    """sizes: channels and hidden channels. The kernels themselves: torch's product behind them would be computed."""
    for channels, hidden in sizes:
        x, vector, bias1 = (torch.empty(shape, dtype=dtype) for shape in ((70, channels), (channels,), (hidden,)))
        weight1, weight2 = torch.empty(hidden, channels, dtype=dtype), torch.empty(channels, hidden, dtype=dtype)
        words = f"{channels} {hidden} {dtype}"
        if channels <= ffn.FUSED_CHANNELS:
            tensors = (x, x, vector, vector, weight1, bias1, weight2, vector)
            yield f"ffn {words}", functools.partial(ffn.fused, *tensors, eps=1e-5)
        many = torch.empty(MULTIPROCESSORS * 256 * 128 // hidden + 128, channels, dtype=dtype)
        for rows in (x, many):
            yield f"fc1 {words} {len(rows)} rows", functools.partial(ffn.fc1, rows, weight1, bias1)


def patch_launches(dtype: torch.dtype, sizes: Sequence[tuple[int, int, int]]) -> Iterator[Launch]:
    """sizes: channels, kernel and resulting channels. 2 x 3 x 5 patches."""
    for channels, side, channels_out in sizes:
        x = torch.empty(2, 3 * side, 5 * side, channels, dtype=dtype).permute(0, 3, 1, 2)
        weight = torch.empty(channels_out, side, side, channels, dtype=dtype).permute(0, 3, 1, 2)
        call = functools.partial(
            patch.patch_norm_forward, x, weight, *(torch.empty(channels_out, dtype=dtype),) * 3, eps=1e-5
        )
        yield f"patch_norm {channels} {side} {channels_out} {dtype}", call


def map_launches(dtype: torch.dtype, channels: int) -> Iterator[Launch]:
    """Positional encoding, bias and resize of maps of 5x7."""
    tokens, bias = torch.empty(2, 35, channels, dtype=dtype), torch.empty(channels, dtype=dtype)
    strided = torch.empty(channels, 1, 3, 3, dtype=dtype)
    for weight in (strided, strided.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)):
        for y in (None, tokens):
            call = functools.partial(add_position_forward, tokens, y, weight, bias, 5, 7)
            yield f"add_position {channels} {dtype} {tuple(weight.stride())} {y is not None}", call
    x = torch.empty(2, 5, 7, channels, dtype=dtype).permute(0, 3, 1, 2)
    for relu in (False, True):
        yield f"bias_act {channels} {dtype} {relu}", functools.partial(bias_act_forward_, x, bias, relu=relu)
    if channels % 16:
        return  # resized right, and read as narrowly as it must be
    for height, width in ((10, 14), (9, 14)):
        other = torch.empty(2, height, width, channels, dtype=dtype).permute(0, 3, 1, 2)
        for mode in ("bilinear", "nearest"):
            for add in (None, other):
                call = functools.partial(resize_add_forward, x, height, width, mode, add)
                yield f"resize_add {channels} {dtype} {height}x{width} {mode} {add is not None}", call


def main() -> int:
    import triton

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--all", action="store_true", help="every launch, not only inference in float16")
    parser.add_argument("--verbose", action="store_true", help="a line for every kernel")
    options = parser.parse_args()
    bound, faults = check(options.target, all_launches() if options.all else quick_launches())
    for each in bound if options.verbose else ():
        print(f"{each.launch}: {each.case.name if each.case else each.kernel}", each.resources)
    for name, found in faults.items():
        print(f"{name} {'; it '.join(found)}")
    print(f"Triton {triton.__version__}, {options.target}: {len(bound)} kernels, {len(faults)} with faults")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
