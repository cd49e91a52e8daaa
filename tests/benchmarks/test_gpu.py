"""The GPU benchmark without a GPU: a whole rehearsal, its baselines, its order, and how it continues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import results
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import checks
from benchmarks.gpu import store as store_module
from benchmarks.gpu.forms import forms
from benchmarks.gpu.jobs import list_jobs
from benchmarks.gpu.store import Store
from benchmarks.gpu.workload import Core, cores, full, model_rests_on, smoke
from twins_trt.kernels.gsa import gsa_reference
from twins_trt.kernels.lsa import lsa_reference


@pytest.mark.slow
def test_every_line_is_walked_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """So that an unattended first run on a GPU does not end at a typing error."""
    assert program.main(["--smoke"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "rehearsed: nothing was kept"
    errors = [line for line in said if "Error: " in line]
    # a CPU has one kind of scaled_dot_product_attention, and no gradient of FlexAttention
    assert all("No viable backend" in line or "FlexAttention does not support backward" in line for line in errors)
    assert len(said) - len(errors) >= 35


@pytest.mark.parametrize("size", [(7, 14), (9, 7), (9, 12)])
@pytest.mark.parametrize("attention", ["lsa", "gsa"])
def test_every_form_computes_the_same(attention: str, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    height, width = size
    if attention == "lsa":
        x, y = (torch.randn(*shape, generator=generator) for shape in ((2, height, width, 96), (96,)))
        expected = lsa_reference(x, y, num_heads=2)
    else:
        x, y = (torch.randn(*shape, generator=generator) for shape in ((2, height * width, 32), (2, 6, 64)))
        expected = gsa_reference(x, y, num_heads=2)
    compared = []
    for name, form in forms(attention, kernels="reference", compiler="eager").items():
        if name in ("sdpa efficient", "sdpa cudnn"):
            continue  # a CPU has neither
        torch.testing.assert_close(form(x, y, 2), expected, rtol=1e-4, atol=1e-5)
        compared.append(name)
    assert {"ours", "mmseg eager", "mmseg compiled", "flex"} <= set(compared)


def test_the_stages_of_the_published_models() -> None:
    found = cores(full())
    assert len(found) == 2 * (3 * 8 + 4)
    first = found[0]
    assert first == Core("lsa", "twins_svt-s_fpn", 1, 1, 128, 128, 0, 2, 32)
    assert {core.keys for core in found if core.attention == "gsa"} == {256}
    assert first.bytes("forward", 2) == 128 * 128 * 64 * 4 * 2
    assert first.bytes("backward", 2) == 128 * 128 * 64 * 7 * 2
    assert first.flops("forward") == 4 * 49 * 128 * 128 * 64
    assert first.flops("backward") == 10 * 49 * 128 * 128 * 64
    assert first.exponentials == 128 * 128 * 49 * 2


def test_rows_are_kept_at_once_and_not_measured_twice(tmp_path: Path) -> None:
    store = Store("gpu-x", {"size": [8, 8]}, fingerprint="one", fresh=False, folder=tmp_path)
    store.put("checks", "a", {"passed": False})
    store.put("kernels", "b", {"ms": 1.0})
    store.put("kernels", "d", {"error": "OutOfMemoryError: "})
    again = Store("gpu-x", {"size": [8, 8]}, fingerprint="one", fresh=False, folder=tmp_path)
    assert again.has("kernels", "b") and not again.has("kernels", "c")
    assert not again.has("checks", "a") and not again.has("kernels", "d")  # it may have been mended
    assert again.red() == {"a": ()}  # until it is made again
    again.put("checks", "a", {"passed": True})
    rows = results.read_results("gpu-x", folder=tmp_path)["rows"]
    assert [(row["section"], row["name"]) for row in rows] == [("checks", "a"), ("kernels", "b"), ("kernels", "d")]
    for other in (
        Store("gpu-x", {}, fingerprint="two", fresh=False, folder=tmp_path),  # other code: other figures
        Store("gpu-x", {}, fingerprint="one", fresh=True, folder=tmp_path),
    ):
        assert not other.has("kernels", "b")


def test_the_copy_is_as_new_as_the_file_and_is_continued_where_the_file_is_missing(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"

    def store(folder: Path) -> Store:
        return Store("gpu-x", {}, fingerprint="one", fresh=False, folder=folder, copy_to=there)

    first = store(here)
    for number in range(3):
        first.put("kernels", str(number), {"ms": 1.0})
        assert (there / "gpu-x.json").read_bytes() == (here / "gpu-x.json").read_bytes()
    assert [path.name for path in there.iterdir()] == ["gpu-x.json"]  # no half of a copy
    assert store(tmp_path / "another machine").has("kernels", "2")


def test_other_tests_are_run_again_and_no_figure_is(tmp_path: Path) -> None:
    Store("gpu-x", {}, fingerprint="one", tests="old", fresh=False, folder=tmp_path).put(
        "checks", "tests x", {"passed": True, "tests": "old"}
    )
    Store("gpu-x", {}, fingerprint="one", tests="old", fresh=False, folder=tmp_path).put("kernels", "a", {"ms": 1.0})
    again = Store("gpu-x", {}, fingerprint="one", tests="new", fresh=False, folder=tmp_path)
    assert again.has("kernels", "a") and not again.has("checks", "tests x")


def test_a_mended_program_does_not_forget_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tmp_path / "benchmarks" / "gpu"
    ours.mkdir(parents=True)
    for name in ("unattended", "timing"):
        (ours / f"{name}.py").write_text("", encoding="utf-8")
    monkeypatch.setattr(store_module, "ROOT", tmp_path)
    before = store_module.fingerprint()
    (ours / "unattended.py").write_text("x = 1", encoding="utf-8")
    assert store_module.fingerprint() == before
    (ours / "timing.py").write_text("x = 1", encoding="utf-8")
    assert store_module.fingerprint() != before


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main([]) == 4
    assert "--smoke" in capsys.readouterr().err


def test_a_wrong_kernel_is_found_and_a_wrong_gradient_alone_leaves_forward_right() -> None:
    core = cores(replace(smoke(), batches=(1,)))[0]
    wrong = lambda *x, num_heads: lsa_reference(*x, num_heads=num_heads) * 1.001  # noqa: E731
    assert checks.check_core(core, smoke())["passed"]
    row = checks.check_core(core, smoke(), ours=wrong)
    assert not row["passed"] and row["errors"][0] == pytest.approx(1e-3, rel=0.01)
    assert not checks.check_core(core, smoke(), direction="forward", ours=wrong)["passed"]

    def wrong_gradient(x: torch.Tensor, y: torch.Tensor, *, num_heads: int) -> torch.Tensor:
        out = lsa_reference(x, y, num_heads=num_heads)
        return out.detach() + (out - out.detach()) * 1.001

    assert checks.check_core(core, smoke(), direction="forward", ours=wrong_gradient)["passed"]
    assert not checks.check_core(core, smoke(), direction="backward", ours=wrong_gradient)["passed"]


def test_what_a_model_rests_on_is_checked() -> None:
    """Also where the check has the name of another model that has the same attention."""
    for workload in (full(), smoke(), smoke(("twins_svt-s_upernet", "twins_svt-s_fpn"), (1, 16))):
        covered = {part for job in checks.jobs(workload) for part in job.covers}
        for job in list_jobs(workload):
            assert set(job.rests_on) <= covered, job.name
    parts = model_rests_on("twins_svt-s_upernet", 1, full())
    assert "gsa twins_svt-s_fpn stage 1 batch 1 forward" in parts and not any("backward" in part for part in parts)
    training = model_rests_on("twins_pcpvt-s_fpn", 16, full(), training=True)
    assert "gsa twins_pcpvt-s_fpn stage 1 batch 16 backward" in training and "gsa bfloat16" in training
