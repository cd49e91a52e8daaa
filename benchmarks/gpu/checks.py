"""What must be right before anything is timed: the tests that need a GPU, our kernels at the sizes that are timed."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.kernels import inputs
from benchmarks.gpu.settings import Core, Settings, cores
from twins_trt.kernels.gsa import gsa, gsa_reference
from twins_trt.kernels.lsa import lsa, lsa_reference

Row = dict[str, Any]

ROOT = Path(__file__).parents[2]
TEST_SECONDS = 600
SOME = 1e-6  # below it errors relative to the reference's own mean nothing


def jobs(settings: Settings, *, tests: bool) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Each check's name and how to make it; its row has `passed`. tests: run the tests marked gpu as well."""
    if tests and settings.device.type == "cuda":
        yield "tests are there", _tests_are_there
        for test in gpu_tests():
            yield f"test {test}", functools.partial(run_tests, test)
    for core in cores(settings):
        yield core.name, functools.partial(check_core, core, settings)
    yield "resize_argmax", lambda: check_postprocess(settings)
    yield "resize_normalize", lambda: check_preprocess(settings)


def check_core(core: Core, settings: Settings) -> Row:
    """Ours, forward and backward, against the reference in fp64: at most twice the error of the reference itself."""
    x, y, grad = inputs(core, settings)
    exact = _run(core, x.detach().double(), y.detach().double(), grad.double(), backend=None)
    theirs = _run(core, x.detach(), y.detach(), grad, backend=None)
    ours = _run(core, x.detach(), y.detach(), grad, backend=settings.kernels)
    errors, limits = [], []
    for mine, other, value in zip(ours, theirs, exact, strict=True):
        errors.append(_error(mine, value))
        limits.append(max(2 * _error(other, value), SOME))
    passed = all(error <= limit for error, limit in zip(errors, limits, strict=True))  # false for NaN
    return {"passed": passed, "errors": errors, "limits": limits}


def check_postprocess(settings: Settings) -> Row:
    """The mask is the reference's, save where two classes are equal to fp32's last bits."""
    from twins_trt.kernels.postprocess import resize_argmax

    torch.manual_seed(0)
    logits = torch.randn(2, 150, 16, 24, device=settings.device).to(settings.dtype)
    size = (64, 96)
    worst = 0.0
    for form in (logits, logits.contiguous(memory_format=torch.channels_last)):
        mask, best = resize_argmax(form, size, probability=True, backend=settings.kernels)
        full = torch.nn.functional.interpolate(form.double(), size, mode="bilinear", align_corners=False)
        chosen = full.gather(1, mask[:, None].long())[:, 0]
        worst = max(worst, float((full.amax(1) - chosen).max()))
        assert best is not None  # asked for
        worst = max(worst, float((best - full.softmax(1).amax(1)).abs().max()))
    return {"passed": worst <= 1e-5, "errors": [worst], "limits": [1e-5]}


def check_preprocess(settings: Settings) -> Row:
    """Bit for bit the reference."""
    from twins_trt.data.preprocessing import Preprocessing
    from twins_trt.kernels.preprocess import resize_normalize

    torch.manual_seed(0)
    facts = Preprocessing()
    differing = 0
    for size in ((37, 53), (96, 128), (200, 333)):
        image = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8, device=settings.device)
        ours, theirs = (
            resize_normalize(image, size, mean=facts.mean, std=facts.std, backend=backend)
            for backend in (settings.kernels, "reference")
        )
        differing += int((ours != theirs).sum())
    return {"passed": differing == 0, "errors": [float(differing)], "limits": [0.0]}


def gpu_tests() -> list[str]:
    """File and function of every test marked gpu; none without pytest."""
    if find_spec("pytest") is None:
        return []
    # only files that have the mark: others may import what this machine lacks
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    done = _pytest("--collect-only", "-q", *files)
    found = re.findall(r"^(tests/\S+?\.py::\w+)", done.stdout, re.MULTILINE)
    return list(dict.fromkeys(found))


def run_tests(test: str) -> Row:
    """One function of the tests, with all its parameters."""
    try:
        done = _pytest("-q", "-x", "--tb=short", test)
    except subprocess.TimeoutExpired:
        return {"passed": False, "said": f"took more than {TEST_SECONDS} s"}
    summary = (done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]])[-1]
    passed = done.returncode == 0 and "passed" in summary and "skipped" not in summary
    return {"passed": passed, "said": summary, **({} if passed else {"output": done.stdout[-3000:]})}


def _tests_are_there() -> Row:
    there = find_spec("pytest") is not None and bool(gpu_tests())
    said = "" if there else "pytest is missing, or finds no tests: install it, or give --no-tests"
    return {"passed": there, "said": said}


def _pytest(*words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a kernel that crashes takes its CUDA context along. Works without installation."""
    code = "from benchmarks.gpu.checkout import make_importable; make_importable(); import sys, pytest; "
    command = [sys.executable, "-c", code + "sys.exit(pytest.main(sys.argv[1:]))", "-m", "gpu", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TEST_SECONDS)


def _run(core: Core, x: Tensor, y: Tensor, grad: Tensor, *, backend: str | None) -> tuple[Tensor, ...]:
    """Result and gradients of the operator by `backend`, or, without one, of the reference."""
    x, y = x.requires_grad_(), y.requires_grad_()
    if core.attention == "lsa":
        form: Callable[..., Tensor] = functools.partial(lsa, backend=backend) if backend else lsa_reference
    else:
        form = functools.partial(gsa, backend=backend) if backend else gsa_reference
    out = form(x, y, num_heads=core.heads)
    return (out.detach(), *torch.autograd.grad(out, (x, y), grad, materialize_grads=True))


def _error(x: Tensor, exact: Tensor) -> float:
    size = float(exact.norm())
    return float((x.double() - exact).norm()) / (size if size > 1e-9 else exact.numel() ** 0.5)
