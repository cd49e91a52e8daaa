"""The tables of a GPU's results: what was measured, beside what decides, and nothing that rests on a red check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import tables
from benchmarks.gpu.store import Store, file_name

TIMES = {"ms": 0.5, "ms_p10": 0.4, "ms_p90": 0.6, "ms_p99": 0.7, "calls": 20, "timed": "graph"}
RENDERED = (
    tables.attentions,
    tables.small_kernels,
    tables.models,
    tables.short,
    tables.engine_default,
    tables.traces,
    tables.training,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(file_name("NVIDIA H200"), {}, fingerprint="one", fresh=True, folder=tmp_path)


def model_row(form: str, **facts: Any) -> dict[str, Any]:
    row = {"model": "twins_svt-s_fpn", "batch": 1, "form": form, "images_per_second": 2000.0, "peak_bytes": None}
    return {**row, **TIMES, **facts}


def test_without_results_every_table_says_so(tmp_path: Path, store: Store) -> None:
    for render in RENDERED:
        assert render(folder=tmp_path) == tables.NONE
    store.put("checks", "a", {"passed": True})  # a run that ended before its first figure
    for render in RENDERED:
        assert render(folder=tmp_path) == tables.NONE


def test_attentions_and_models_are_rendered(tmp_path: Path, store: Store) -> None:
    store.put("ceilings", "copy", {"unit": "B/s", "rate": 4e12, **TIMES})
    core = {"what": "lsa", "model": "twins_svt-s_fpn", "stage": 1, "batch": 16, "direction": "forward"}
    work = {"bytes": 1e9, "flops": 1e9, "exponentials": 1e6}
    store.put("kernels", "a", {**core, **work, "form": "ours", **TIMES, "ms_in_row": 0.25, "row_calls": 40})
    store.put("kernels", "b", {**core, **work, "form": "mmseg eager", **TIMES, "ms": 4.0})
    store.put("kernels", "c", {"error": "RuntimeError: none"})
    store.put("models", "d", model_row("ours", peak_bytes=2**30, first_s=3.25, same_pixels=0.98765))
    attentions, models = tables.attentions(folder=tmp_path), tables.models(folder=tmp_path)
    assert "| lsa | twins_svt-s_fpn | 1 | 16 | forward | 500.0 | 250.00 | 50 % |  |  | 8.0 |" in attentions
    assert "| `twins_svt-s_fpn` | 1 | ours | 0.500 | 0.600 | 0.700 | 2000 | 1024 | graph | 3.2 | 98.77 % |" in models


def test_an_empty_kernel_stands_beside_the_others(tmp_path: Path, store: Store) -> None:
    kernel = {"what": "resize_argmax", "batch": 1, "form": "ours", "bytes": 5e6}
    store.put("kernels", "a", {**kernel, **TIMES, "ms": 0.008, "ms_in_row": 0.005, "row_calls": 100})
    core = {"what": "gsa", "model": "x", "stage": 1, "batch": 1, "direction": "forward", "form": "ours"}
    store.put("kernels", "b", {**core, **TIMES, "bytes": 1.0, "flops": 1.0, "exponentials": 1.0})
    store.put("ceilings", "empty kernel", {**TIMES, "ms": 0.0042, "ms_in_row": 0.00123, "row_calls": 100})
    small = tables.small_kernels(folder=tmp_path)
    assert "| `resize_argmax` | 1 | ours | 8.0 | 600.0 | 700.0 | 5.00 | 625 |" in small
    assert "| empty kernel |  |  | 4.2 | 600.0 | 700.0 | 1.23 |  |" in small
    assert "gsa" not in small
    for text in (small, tables.attentions(folder=tmp_path)):
        assert "An empty kernel takes 4.2 µs once and 1.23 µs in a row" in text


def test_a_ceiling_that_was_measured_otherwise_says_so(tmp_path: Path, store: Store) -> None:
    core = {"what": "gsa", "model": "x", "stage": 1, "batch": 1, "direction": "forward", "form": "ours"}
    store.put("kernels", "a", {**core, **TIMES, "bytes": 1.0, "flops": 1.0, "exponentials": 1.0})
    store.put("ceilings", "matmul", {"unit": "FLOP/s", "rate": 6e14, **TIMES})
    assert "was measured" not in tables.attentions(folder=tmp_path).replace("was not measured", "")
    store.put("ceilings", "copy", {"unit": "B/s", "rate": 4e12, "note": "by a script of its own"})
    assert "`copy` was measured by a script of its own." in tables.attentions(folder=tmp_path)


def test_the_short_table_has_a_line_a_model_and_the_best_compiled(tmp_path: Path) -> None:
    facts = {"gpu": "NVIDIA H200", "size": [512, 384]}
    store = Store(file_name("NVIDIA H200"), facts, fingerprint="one", fresh=True, folder=tmp_path)
    forms = {"ours": 0.5, "ours compiled": 0.4, "eager amp": 2.0, "sdpa compiled": 0.6, "compiled amp": 0.9}
    for form, ms in forms.items():
        store.put("models", f"1 {form}", model_row(form, ms=ms))
    store.put("models", "16 ours", model_row("ours", ms=4.0, batch=16))
    store.put("models", "16 eager amp", model_row("eager amp", ms=29.0, batch=16))
    store.put("models", "16 compiled amp", model_row("compiled amp", ms=12.0, batch=16))
    store.put("models", "other", model_row("ours", model="twins_svt-b_fpn", ms=1.0))
    store.put("models", "without ours", model_row("eager amp", model="twins_svt-l_fpn", ms=9.0))
    short = tables.short(folder=tmp_path)
    assert "| `twins_svt-s_fpn` | 0.50 | 0.60 (sdpa compiled) | 4.00 | 12.00 (compiled amp) |" in short
    assert "| `twins_svt-b_fpn` | 1.00 |  |  |  |" in short
    assert "twins_svt-l_fpn" not in short
    assert "512x384, a uint8 image to a uint8 mask on one NVIDIA H200" in short


def test_the_engines_default_is_decided_beside_the_best_of_the_others(tmp_path: Path, store: Store) -> None:
    forms = {"ours": 0.5, "ours compiled": 0.45, "ours autotuned": 0.4, "eager amp": 2.0, "sdpa autotuned": 0.6}
    for form, ms in forms.items():
        store.put("models", form, model_row(form, ms=ms))
    store.put("models", "host", model_row("ours, host to host", ms=0.1))  # no form of the engine's
    store.put("models", "16", {**model_row("ours", ms=3.0), "batch": 16})
    text = tables.engine_default(folder=tmp_path)
    assert "| `twins_svt-s_fpn` | 1 | 0.500 | 0.450 | 0.400 | ours autotuned | 0.600 (sdpa autotuned) |" in text
    assert "| `twins_svt-s_fpn` | 16 | 3.000 |  |  | ours |  |" in text


def test_a_trace_is_rendered_with_the_longest_kernels_first(tmp_path: Path, store: Store) -> None:
    names = ["gemm<128, 64>|x", "k" * 300, *(f"kernel {number}" for number in range(tables.TRACED_KERNELS))]
    kernels = [{"name": name, "count": 2, "us": 10.0, "share": 1 / len(names)} for name in names]
    row = {"model": "twins_svt-s_fpn", "batch": 1, "launches": 44, "busy_us": 220.0, "idle_us": 31.0}
    store.put("traces", "a", {**row, "kernels": kernels, "graph_launches": 1})  # as it is measured: without `ms`
    store.put("traces", "b", {**row, "kernels": kernels, "graph_launches": 0})
    store.put("traces", "c", {"error": "given up after 3 s", "given_up": True})
    text = tables.traces(folder=tmp_path)
    assert "batch 1, as a CUDA graph: 44 kernels" in text and "batch 1, not as a CUDA graph: 44 kernels" in text
    assert "44 kernels run for 220 µs, and between them nothing runs for 31 µs" in text
    assert "with the profiler attached" in text
    assert "| `gemm<128, 64>/x` | 2 | 10.0 | 4.5 % |" in text
    assert f"| `{'k' * (tables.LONG_NAME - 1)}…` | 2 |" in text
    assert "| `2 others` | 4 | 20.0 | 9.1 % |" in text


def test_what_rests_on_a_red_check_is_left_out_and_nothing_else(tmp_path: Path, store: Store) -> None:
    store.put("models", "a", {**model_row("ours"), "rests_on": ["lsa", "gsa"]})
    store.put("models", "b", model_row("eager amp"))
    store.put("models", "c", {"excluded": "it rests on lsa", "rests_on": ["lsa"]})
    assert "| ours |" in tables.models(folder=tmp_path)
    store.put("checks", "lsa forward", {"passed": False, "covers": ["lsa"]})
    text = tables.models(folder=tmp_path)
    assert "| ours |" not in text and "| eager amp |" in text
