"""Which form of an attention runs, and what is said where it is not the kernels."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from twins_trt.errors import EngineError, MissingDependencyError, UsageError
from twins_trt.kernels import backend
from twins_trt.kernels.device import dot_precision
from twins_trt.kernels.gsa import gsa
from twins_trt.kernels.lsa import lsa, lsa_reference
from twins_trt.kernels.postprocess import resize_argmax
from twins_trt.kernels.preprocess import resize_normalize

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch
from twins_trt.kernels.gsa import gsa, gsa_reference
from twins_trt.kernels.lsa import lsa, lsa_reference
assert "torch._dynamo" not in sys.modules
qkv, bias, kv = torch.randn(1, 9, 7, 96), torch.randn(96), torch.randn(1, 5, 64)
window = lsa(qkv, bias, num_heads=1)
assert torch.equal(window, lsa_reference(qkv, bias, num_heads=1))
q = window.flatten(1, 2)
assert torch.equal(gsa(q, kv, num_heads=1), gsa_reference(q, kv, num_heads=1))
try:
    gsa(q, kv, num_heads=1, backend="triton")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_kernels_import_and_run_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "MissingDependencyError gsa with backend='triton' needs triton, which is not installed",
        '  fix: pip install "twins-trt[triton]"',
    ]


def test_a_cpu_gets_the_reference() -> None:
    assert backend.choose_backend("auto", torch.zeros(1), op="lsa", unsupported=None) == "reference"
    assert backend.choose_backend("sdpa", torch.zeros(1), op="lsa", unsupported=None) == "sdpa"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """One whose GPU and Triton a test may set; what is known of the real ones is looked up anew, before and after."""
    looked_up = (backend.installed_triton, backend.gpu_problem, backend.log_once)
    for each in looked_up:
        each.cache_clear()
    yield monkeypatch
    for each in looked_up:
        each.cache_clear()


def set_triton(machine: pytest.MonkeyPatch, version: str | None) -> None:
    """Triton in this version; None: as if it were not installed."""
    module = ModuleType("triton")
    module.__version__ = version  # type: ignore[attr-defined]
    machine.setitem(sys.modules, "triton", None if version is None else module)


@pytest.fixture
def gpu(machine: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU of compute capability 8.7 with Triton beside it."""
    machine.setattr(torch.cuda, "get_device_capability", lambda index: (8, 7))
    set_triton(machine, "3.5.0")
    return machine


def on_gpu(dtype: torch.dtype = torch.float16, unsupported: str | None = None) -> str:
    x = SimpleNamespace(device=torch.device("cuda:0"), dtype=dtype)  # all that is looked at
    return backend.choose_backend("auto", x, op="lsa", unsupported=unsupported)


def test_a_gpu_gets_the_kernels(gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert {on_gpu(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32)} == {"triton"}
    assert not caplog.records


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("old GPU", "lsa: Triton has no tensor cores on sm_75; using scaled_dot_product_attention"),
        ("no Triton", "lsa: Triton is not installed; using scaled_dot_product_attention"),
        ("float64", "lsa: there is no kernel for torch.float64; using scaled_dot_product_attention"),
        ("head dim", "lsa: there is no kernel for head dim 24; using scaled_dot_product_attention"),
    ],
)
def test_a_gpu_without_kernels_gets_sdpa_and_one_line(
    gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str, line: str
) -> None:
    if reason == "old GPU":
        gpu.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    if reason == "no Triton":
        set_triton(gpu, None)
    dtype = torch.float64 if reason == "float64" else torch.float16
    unsupported = "there is no kernel for head dim 24" if reason == "head dim" else None
    with caplog.at_level(logging.INFO, logger="twins_trt"):
        assert [on_gpu(dtype, unsupported) for _ in range(3)] == ["sdpa"] * 3
    assert [record.getMessage() for record in caplog.records] == [line]


def test_what_is_asked_for_by_name_and_impossible_is_an_error(machine: pytest.MonkeyPatch) -> None:
    qkv, bias, kv = torch.zeros(1, 7, 7, 96), torch.zeros(96), torch.zeros(1, 4, 64)
    with pytest.raises(UsageError, match="lsa has no backend 'cuda'"):
        lsa(qkv, bias, num_heads=1, backend="cuda")
    with pytest.raises(UsageError, match="no kernel for head dim 8"):
        lsa(qkv, bias, num_heads=4, backend="triton")
    with pytest.raises(UsageError, match="no kernel for window size 9"):
        lsa(qkv, bias, num_heads=1, window_size=9, backend="triton")
    with pytest.raises(UsageError, match=r"no kernel for torch\.float64"):
        lsa(qkv.double(), bias, num_heads=1, backend="triton")
    with pytest.raises(UsageError, match="no kernel for head dim 16"):
        gsa(qkv[0, :, :, :32], kv.expand(7, 4, 64), num_heads=2, backend="triton")
    with pytest.raises(EngineError, match="do not run on a cpu tensor"):
        lsa(qkv, bias, num_heads=1, backend="triton")
    backend.installed_triton.cache_clear()
    set_triton(machine, None)
    with pytest.raises(MissingDependencyError, match="needs triton"):
        lsa(qkv, bias, num_heads=1, backend="triton")


@pytest.mark.parametrize(
    ("version", "problem"), [("3.5.0", None), ("4.0.0+git1", None), ("3.4.0", "Triton 3.4.0 is older than 3.5")]
)
def test_an_old_triton_is_not_used(machine: pytest.MonkeyPatch, version: str, problem: str | None) -> None:
    set_triton(machine, version)
    assert backend.installed_triton() == version
    assert backend.triton_problem(version) == problem


def calls_in_bf16(backend: str) -> dict[str, Callable[[], object]]:
    """Every operator by its public function, in bfloat16."""
    half = torch.bfloat16
    qkv, bias, q, kv = (torch.zeros(shape, dtype=half) for shape in ((1, 7, 7, 96), (96,), (1, 4, 32), (1, 4, 64)))
    image, numbers = torch.zeros(1, 4, 4, 3, dtype=torch.uint8), (1.0, 2.0, 3.0)
    return {
        "lsa": lambda: lsa(qkv, bias, num_heads=1, backend=backend),
        "gsa": lambda: gsa(q, kv, num_heads=1, backend=backend),
        "resize_argmax": lambda: resize_argmax(qkv, (4, 4), backend=backend),
        "resize_normalize": lambda: resize_normalize(
            image, (4, 4), mean=numbers, std=numbers, dtype=half, backend=backend
        ),
    }


@pytest.mark.parametrize("op", calls_in_bf16("triton"))
def test_the_interpreter_is_not_given_bf16(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(EngineError, match=f"{op}: Triton's interpreter computes bfloat16 wrongly") as error:
        calls_in_bf16("triton")[op]()
    assert "pass float16 or float32, or unset TRITON_INTERPRET" in str(error.value)
    calls_in_bf16("auto")[op]()  # the reference
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(EngineError, match="do not run on a cpu tensor"):
        calls_in_bf16("triton")[op]()


def test_operators_do_not_hand_bf16_to_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names in torch, and under autocast, which casts behind the public functions' checks."""
    pytest.importorskip("triton", reason="Triton is not installed")
    ops, half = torch.ops.twins_trt, torch.bfloat16
    qkv, bias, q, kv = (torch.zeros(shape, dtype=half) for shape in ((1, 7, 7, 96), (96,), (1, 4, 32), (1, 4, 64)))
    out, lse = ops.gsa(q, kv, 1)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    image = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    for call in (
        lambda: ops.lsa(qkv, bias, 1, 7, "parity"),
        lambda: ops.lsa_backward(qkv[..., :32], qkv, bias, 1, 7, "parity"),
        lambda: ops.gsa(q, kv, 1),
        lambda: ops.gsa_backward(q, q, kv, out, lse, 1),
        lambda: ops.resize_argmax(qkv, 4, 4, False),
        lambda: ops.resize_normalize(image, 4, 4, [1.0] * 3, [1.0] * 3, half, True),
    ):
        with pytest.raises(EngineError, match="computes bfloat16 wrongly"):
            call()
    with torch.autocast("cpu", dtype=half), pytest.raises(EngineError, match="computes bfloat16 wrongly"):
        lsa(qkv.float(), bias.float(), num_heads=1, backend="triton")


def test_shapes_that_do_not_fit_each_other_are_an_error() -> None:
    qkv, bias = torch.zeros(1, 7, 7, 96), torch.zeros(96)
    with pytest.raises(UsageError, match="does not hold 5 heads"):
        lsa(qkv, bias, num_heads=5)
    with pytest.raises(UsageError, match="does not hold 1 heads"):
        lsa(qkv, bias[:32], num_heads=1)
    with pytest.raises(UsageError, match="padding 'zeros' is unknown"):
        lsa(qkv, bias, num_heads=1, padding="zeros")
    with pytest.raises(UsageError, match="do not hold 1 heads"):
        gsa(torch.zeros(1, 4, 32), torch.zeros(1, 4, 32), num_heads=1)


def test_sizes_without_a_kernel_run_on_a_cpu() -> None:
    qkv, bias = torch.randn(1, 10, 10, 96), torch.randn(96)
    out = lsa(qkv, bias, num_heads=4, window_size=9)
    assert torch.equal(out, lsa_reference(qkv, bias, num_heads=4, window_size=9))


def test_tf32_is_used_where_torch_was_told_so() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert dot_precision(torch.zeros(1)) == "tf32x3"
        torch.set_float32_matmul_precision("high")
        assert dot_precision(torch.zeros(1)) == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
