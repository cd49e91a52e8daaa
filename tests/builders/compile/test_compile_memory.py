"""What a compilation is predicted to take, what is free for it, and the refusal where it cannot fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_command
from compiling import ADA, ORIN, Install, ToCompile
from fake_gpu import FakeGpu
from fake_tensorrt import calls

from twins_trt.builders.compile import compile_bundle
from twins_trt.builders.compile.memory import FreeMemory, forecast, free_memory, refuse_too_large
from twins_trt.device import Device
from twins_trt.errors import BuildError, UnfusedAttentionError
from twins_trt.verbs.compile import CompileRequest

MIB = 1 << 20
SWAPS = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0  partition\t2048000\t1024000\t5\n/swap file\t4096000\t0\t-2\n"


def proc(root: Path, *, available: int, swaps: str = "") -> Path:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 7990000 kB\nMemAvailable: {available << 10} kB\n")
    (root / "proc" / "swaps").write_text(swaps)
    return root


def test_what_is_free_is_read_and_compressed_swap_counts_half(tmp_path: Path, install: Install) -> None:
    install()
    assert free_memory(ORIN, proc(tmp_path, available=3000, swaps=SWAPS)) == FreeMemory(3000, 4500, None, shared=True)
    assert free_memory(None, tmp_path / "nothing") == FreeMemory(None, 0, None, shared=False)


def test_a_gpu_with_its_own_memory_is_asked(tmp_path: Path, install: Install) -> None:
    install(device=ADA)
    free = free_memory(ADA, proc(tmp_path, available=3000))
    assert (free.gpu, free.shared) == (FakeGpu().capacity // MIB, False)


def test_the_forecast_grows_with_the_weights_and_shares_out_what_is_left() -> None:
    free = FreeMemory(4000, 0, None, shared=True)
    found = forecast(100 * MIB, None, free, on_gpu=True)
    assert found.host == 550 + 4 * 100
    assert found.workspace == (4000 - (300 + 2 * 100) - found.host) // 2 == 1275
    assert found.gpu == 300 + 2 * 100 + found.workspace
    assert found.host + found.gpu < 4000
    assert str(found).startswith("predicted: ") and "not measured" in found.reason
    assert forecast(100 * MIB, 64, free, on_gpu=True).gpu == 300 + 2 * 100 + 64
    large = forecast(100 * MIB, None, FreeMemory(60_000, 0, None, shared=True), on_gpu=True)
    assert large.workspace == 2048
    assert forecast(100 * MIB, None, FreeMemory(100, 0, None, shared=True), on_gpu=True).workspace == 128
    # A GPU with its own memory is left to the compiler, and without a GPU there is no workspace.
    assert forecast(100 * MIB, None, FreeMemory(6000, 0, 8000), on_gpu=True).workspace is None
    assert forecast(100 * MIB, None, free, on_gpu=False).gpu == 0


@pytest.mark.parametrize(
    ("free", "workspace", "cause", "fix"),
    [
        (FreeMemory(600, 9000, None, shared=True), 512, "1012 MiB that cannot be swapped, and 600", "workspace=128"),
        (FreeMemory(1200, 300, None, shared=True), 512, "1962 MiB, and 1200 MiB and 300 MiB of swap", "swapon"),
        (FreeMemory(600, 0, None, shared=True), 128, "628 MiB that cannot be swapped", "a device with more memory"),
        (FreeMemory(800, 0, 8000), None, "950 MiB, and 800 MiB and 0 MiB of swap", "swapon"),
        (FreeMemory(8000, 0, 400), None, "500 MiB of the GPU, and 400 MiB are free there", "nvidia-smi"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_helps(
    free: FreeMemory, workspace: int | None, cause: str, fix: str
) -> None:
    with pytest.raises(BuildError) as caught:
        refuse_too_large(forecast(100 * MIB, workspace, free, on_gpu=True), what="x.bundle")
    assert cause in caught.value.cause and caught.value.fix is not None and fix in caught.value.fix


@pytest.mark.parametrize(
    "free", [FreeMemory(2000, 0, None, shared=True), FreeMemory(1000, 600, None, shared=True), FreeMemory(None)]
)
def test_what_fits_is_let_through(free: FreeMemory) -> None:
    refuse_too_large(forecast(100 * MIB, None, free, on_gpu=True), what="x.bundle")


def test_a_full_orin_refuses_before_it_compiles_and_a_free_one_bounds_the_workspace(
    install: Install, to_compile: ToCompile, tmp_path: Path
) -> None:
    module, bundle = install("10.3.0"), to_compile()
    request = CompileRequest(bundle=str(bundle.path))
    with pytest.raises(BuildError, match="is predicted to take 430 MiB that cannot be swapped, and 300 MiB are free"):
        compile_bundle(request, root=proc(tmp_path, available=300))
    assert module.built == []
    compile_bundle(request, root=proc(tmp_path, available=2000))
    expected = (2000 - 302 - 554) // 2
    assert calls(module, "set_memory_pool_limit") == [(module.MemoryPoolType.WORKSPACE, expected * MIB)]
    compile_bundle(CompileRequest(bundle=str(bundle.path), workspace=64, again=True), root=tmp_path)
    assert calls(module, "set_memory_pool_limit")[1:] == [(module.MemoryPoolType.WORKSPACE, 64 * MIB)]


def test_a_gpu_with_its_own_memory_keeps_the_compilers_workspace(install: Install, to_compile: ToCompile) -> None:
    module = install("10.3.0", Device("NVIDIA RTX 4090", "sm_89"))
    compile_bundle(CompileRequest(bundle=str(to_compile().path)))
    assert calls(module, "set_memory_pool_limit") == []


def test_a_dry_run_says_the_memory_and_changes_nothing(install: Install, to_compile: ToCompile) -> None:
    module, bundle = install("10.3.0"), to_compile()
    before = sorted(path.name for path in bundle.path.parent.iterdir())
    planned = run_command("compile", bundle.path, "--workspace", "256", "--dry-run", "--json")
    assert planned.code == 0 and module.built == []
    memory = planned.json["memory"]
    assert (memory["host_mib"], memory["gpu_mib"], memory["workspace_mib"]) == (554, 302 + 256, 256)
    assert memory["predicted"] and memory["shared"] and memory["free_host_mib"] > 0
    assert (planned.json["file"], planned.json["gpu"]) == ("engines/tensorrt-10.3.0-sm_87.engine", "Orin (sm_87)")
    text = run_command("compile", bundle.path, "--workspace", "256", "--dry-run").out
    assert "predicted: 1112 MiB of the memory that GPU and host share, of which 256 MiB of workspace" in text
    assert sorted(path.name for path in bundle.path.parent.iterdir()) == before
    refused = run_command("compile", bundle.path, "--workspace", "90000000", "--dry-run")
    assert refused.code == 1 and "lower the workspace: --workspace 128" in refused.err


def test_a_real_compilation_stays_below_the_forecast(to_compile: ToCompile) -> None:
    """By the real TensorRT-RTX, in a process of its own."""
    words = ["compile", str(to_compile().path), "--target", "sm_86", "--json"]
    command = [sys.executable, "-m", "twins_trt", *words]
    planned = json.loads(subprocess.run([*command, "--dry-run"], capture_output=True, check=True).stdout)
    done = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert 100 < done["peak_host_mib"] < planned["memory"]["host_mib"]


def test_a_finished_engine_is_taken_whatever_is_free_when_it_is_asked_for(
    install: Install, to_compile: ToCompile, tmp_path: Path
) -> None:
    """The workspace that was chosen for it depends on the memory that was free, and the request does not name one."""
    module, bundle = install("10.3.0"), to_compile(attentions=1, precision="fp16")
    with pytest.raises(UnfusedAttentionError):
        compile_bundle(CompileRequest(bundle=str(bundle.path)), root=proc(tmp_path, available=2000))
    request = CompileRequest(bundle=str(bundle.path), allow_unfused=True)
    assert compile_bundle(request, root=proc(tmp_path, available=3000)).resumed
    assert len(module.built) == 1
