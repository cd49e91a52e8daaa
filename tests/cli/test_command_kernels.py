"""`twins-trt kernels`: list, check, write; kernels are compiled for GPUs that are not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Twins

from twins_trt.kernels.crosscompile import TARGETS, Record, all_cases

ONE = ("kernels", "--target", "sm_90", "--kernels", "gsa_sum_splits", "--dtypes", "fp16")


def test_lists_what_is_recorded(twins: Twins) -> None:
    ran = twins("kernels", "--json")
    assert ran.code == 0
    assert len(ran.json["kernels"]) == sum(len(all_cases(target)) for target in TARGETS)
    assert all(row["registers"] > 0 and row["threads"] >= 64 for row in ran.json["kernels"])
    loads = {(row["kernel"], row["variant"]): row["wide_loads"] for row in ran.json["kernels"]}
    assert loads["resize_argmax", "padded classes"] > 0 == loads["resize_argmax", "planes"]
    ran = twins("kernels", "--target", "87", "--kernels", "lsa_forward", "--dtypes", "fp16", "--head-dims", "32")
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0][:3] == ["target", "kernel", "dtype"]
    assert [line[:4] for line in lines[1:5]] == [["sm_87", "lsa_forward", "fp16", "32"]] * 4
    assert [line[-1] for line in lines[1:5]] == ["0"] * 4  # all read 16 bytes at a time
    assert ran.out.splitlines()[-1].startswith("4 kernels; figures as compiled by Triton")


def test_checks_against_the_record(twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    ran = twins(*ONE, "--check", "--workers", "1", "--json")
    assert ran.code == 0
    assert ran.json == {"triton": triton.__version__, "compiled": 1, "wrong": []}
    empty = tmp_path / "resources.json"
    empty.write_text(Record("0", "2000-01-01", "nowhere").to_json())
    monkeypatch.setattr("twins_trt.kernels.crosscompile.record.RECORD", empty)
    ran = twins(*ONE, "--check", "--workers", "1")
    assert ran.code == 1
    assert "sm_90 gsa_sum_splits fp16: is not in the record" in ran.out
    assert "registers and shared memory were not compared: they are recorded of Triton 0" in ran.out


def test_writes_cubins_and_what_a_launch_needs(twins: Twins, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    ran = twins(*ONE, "--out", str(tmp_path / "cubins"), "--ptx-version", "85", "--json")
    assert ran.code == 0
    described = json.loads(Path(ran.json["file"]).read_text())["kernels"]
    assert [(kernel["kernel"], kernel["target"]) for kernel in described] == [("gsa_sum_splits", "sm_90")]
    assert (tmp_path / "cubins" / described[0]["cubin"]).read_bytes()[:4] == b"\x7fELF"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "sm_75"], "use backend='sdpa'"),
        (["--target", "sm_42"], "no kernels for target 'sm_42'"),
        (["--kernels", "lsa"], "lsa_forward"),
        (["--dtypes", "fp8"], "choose from bf16, fp16, fp32"),
        (["--head-dims", "48"], "choose from 16, 32, 64"),
        (["--ptx-version", "85"], "--out DIR"),
        (["--workers", "2"], "--check"),
        (["--check", "--workers", "0"], "--workers 2"),
        (["--check", "--out", "x"], "not allowed with"),
    ],
)
def test_wrong_words_are_named(twins: Twins, words: list[str], said: str) -> None:
    ran = twins("kernels", *words)
    assert ran.code == 2
    assert said in ran.err
