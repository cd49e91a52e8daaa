"""Kernels compiled for GPUs that are not there: what they take, held to the record; files for C++."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from told import Told

from twins_trt.errors import BuildError, UsageError
from twins_trt.kernels.case import Case, Tiling
from twins_trt.kernels.crosscompile import (
    TARGETS,
    Record,
    Resources,
    all_cases,
    compile_case,
    problems,
    read_record,
    select,
    sweep,
    write_cubins,
)
from twins_trt.kernels.crosscompile.compiler import capability, count_loads

triton = pytest.importorskip("triton", reason="Triton is not installed")

FAST_TARGETS = ("sm_86", "sm_89", "sm_90", "sm_120")
FAST_CASES = {  # the variants that need most, of what the published models run
    "lsa_forward fp16 32",
    "lsa_backward fp16 32 pads attend",
    "gsa_forward fp16 32 any keys",
    "gsa_forward fp16 64 any keys",
    "gsa_backward fp16 32 up to 256 keys",
    "gsa_backward_q fp16 64 any keys",
    "gsa_backward_kv fp16 64",
    "gsa_sum_splits fp16 0",
    "resize_argmax fp16 0 classes last probability",
    "resize_argmax fp16 0 padded classes probability",
    "resize_argmax fp16 0 planes",
    "resize_argmax_cells fp16 0",
    "resize_normalize fp16 0",
    "ffn fp16 0 64 channels, 512 hidden",
    "ffn fp16 0 128 channels, 1024 hidden",
    "fc1 fp16 0 1024 channels, 4096 hidden",
    "add_layer_norm fp16 0 1024 channels residual, row after",
}
TIGHTEST_CASES = {  # of fp32, whose operands fill the registers
    "lsa_backward fp32 64 pads attend",
    "gsa_forward fp32 64 any keys",
    "gsa_backward_kv fp32 64",
}


def has_wide_loads(name: str) -> bool:
    """Of a case's name: all but those that read pixels of three bytes, or classes or channels one by one."""
    one_by_one = ("planes", "classes last", "odd channels")
    return not name.startswith("resize_normalize") and not any(words in name for words in one_by_one)


def narrow_loads_allowed(name: str) -> bool:
    """The backward of GSA reads one number a query, and some of its tiles are smaller than 16 bytes a thread. Vectors
    beside a product are, too. A weight that is strided is read number by number."""
    smaller = name.startswith(("gsa_backward", "ffn", "fc1"))
    return smaller or "strided weight" in name or not has_wide_loads(name)


@pytest.fixture(scope="module")
def record() -> Record:
    return read_record()


def case_named(name: str, target: str) -> Case:
    return next(case for case in all_cases(target) if case.name == name)


def resources_with(*, registers: int, shared: int) -> Resources:
    return Resources(registers, spills=0, shared=shared, tmem=0, threads=128, wide_loads=4, narrow_loads=1)


def exceeded(record: Record, work: list[tuple[Case, str]]) -> dict[str, list[str]]:
    return {
        f"{case.name} {target}": found
        for case, target, resources in sweep(work)
        if (found := record.exceeded(case.name, target, resources, triton=triton.__version__))
    }


@pytest.mark.parametrize("target", FAST_TARGETS)
def test_kernels_of_the_published_models_stay_within_the_record(record: Record, target: str) -> None:
    work = [(case, target) for case in all_cases(target) if case.name in FAST_CASES]
    assert len(work) == len(FAST_CASES)
    assert exceeded(record, work) == {}


@pytest.mark.slow
@pytest.mark.parametrize("target", [target for target in TARGETS if target not in FAST_TARGETS])
def test_kernels_of_other_gpus_stay_within_the_record(record: Record, target: str) -> None:
    """All kernels for all targets take too long for a test: twins-trt kernels --check does that."""
    work = [(case, target) for case in all_cases(target) if case.name in FAST_CASES | TIGHTEST_CASES]
    assert len(work) == len(FAST_CASES | TIGHTEST_CASES)
    assert exceeded(record, work) == {}


def test_the_record_is_complete_and_sound(record: Record) -> None:
    recorded = {(name, target) for name, row in record.resources.items() for target in row}
    assert recorded == {(case.name, target) for target in TARGETS for case in all_cases(target)}
    found = {
        (name, target): wrong
        for name, row in record.resources.items()
        for target, resources in row.items()
        if (wrong := problems(resources, target))
    }
    assert found == {}
    assert all(0 < r.registers <= 255 for row in record.resources.values() for r in row.values())


def test_every_target_has_every_kernel_dtype_and_head_dim() -> None:
    for target in TARGETS:
        cases = all_cases(target)
        assert len({case.name for case in cases}) == len(cases)
        assert all(set((*case.aligned, *case.float32)) <= set(case.arguments()) for case in cases)
        made = {tuple(case.name.split()[:3]) for case in cases}
        for dtype in ("fp32", "fp16", "bf16"):
            assert {(f"lsa_{way}", dtype, d) for way in ("forward", "backward") for d in ("16", "32", "64")} <= made
            two_kernels = ("forward", "backward_q", "backward_kv")
            assert {(f"gsa_{kernel}", dtype, d) for kernel in two_kernels for d in ("32", "64")} <= made
            assert (("gsa_backward", dtype, "32") in made) == (dtype != "fp32")
            assert {("resize_argmax", dtype, "0"), ("resize_normalize", dtype, "0")} <= made


def test_a_kernel_that_spills_is_found() -> None:
    case = case_named("lsa_forward fp16 32 two heads", "sm_86")
    starved = replace(case, tiling=replace(case.tiling, max_registers=40))
    resources = compile_case(starved, "sm_86").resources
    assert resources.registers <= 40
    assert problems(resources, "sm_86") == [f"spills {resources.spills} bytes per thread"]


def test_a_kernel_that_would_be_a_trap_is_found() -> None:
    case = case_named("gsa_backward fp16 32 256 keys", "sm_100")
    constants = {**dict(case.tiling.constants), "BQ": 64}
    greedy = replace(case, tiling=Tiling(tuple(constants.items()), 8, 2))
    resources = compile_case(greedy, "sm_100").resources
    assert resources.tmem > 512
    assert [problem.rpartition(": ")[2] for problem in problems(resources, "sm_100")] == ["it is a trap"]


def test_a_kernel_that_the_compiler_refuses_is_a_build_error() -> None:
    case = case_named("lsa_forward fp16 32", "sm_86")
    constants = {**dict(case.tiling.constants), "ROWS": 63}
    with pytest.raises(BuildError, match="lsa_forward fp16 32 does not compile for sm_86"):
        compile_case(replace(case, tiling=replace(case.tiling, constants=tuple(constants.items()))), "sm_86")


def test_kernels_read_16_bytes_at_a_time(record: Record) -> None:
    figures = [(name, target, each) for name, row in record.resources.items() for target, each in row.items()]
    assert [(name, target) for name, target, each in figures if has_wide_loads(name) != (each.wide_loads > 0)] == []
    narrow = {name for name, _, each in figures if each.narrow_loads and not narrow_loads_allowed(name)}
    assert narrow == set()


def test_loads_are_counted_by_their_width() -> None:
    wide = """
        @%p1 ld.global.v4.b32 { %r23, %r24, %r25, %r26 }, [ %rd11 + 0 ];
        ld.global.L1::evict_last.v2.b64 { %rd1, %rd2 }, [ %rd11 + 0 ];
        ld.global.v8.b32 { %r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8 }, [ %rd11 + 0 ];
        cp.async.cg.shared.global [ %r39 + 0 ], [ %rd15 + 0 ], 0x10, %r41;
    """
    narrow = """
        ld.global.b16 { %rs1 }, [ %rd11 + 0 ];
        @%p3 ld.global.v2.b32 { %r1, %r2 }, [ %rd11 + 0 ];
        cp.async.ca.shared.global [ %r211 + 0 ], [ %rd17 + 0 ], 0x4, %r42;
    """
    other = """
        st.global.v4.b32 [ %rd1 + 0 ], { %r1, %r2, %r3, %r4 };
        ld.shared.v4.b32 { %r1, %r2, %r3, %r4 }, [ %r5 ];
        ld.param.b64 %rd1, [kernel_param_0];
        cp.async.commit_group;
    """
    assert count_loads(wide) == (4, 0)
    assert count_loads(narrow) == (0, 3)
    assert count_loads(other + wide + narrow) == (4, 3)


def test_a_mask_that_cuts_16_bytes_is_found(record: Record) -> None:
    """As it was on the models' path: the same logits, with a mask at the last class."""
    case = case_named("resize_argmax fp16 0 padded classes", "sm_90")
    constants = {**dict(case.tiling.constants), "WHOLE_BLOCKS": False}
    masked = compile_case(replace(case, tiling=replace(case.tiling, constants=tuple(constants.items()))), "sm_90")
    assert masked.resources.wide_loads == 0
    faults = record.exceeded(case.name, "sm_90", masked.resources, triton=record.triton)
    assert "has no 16-byte loads, 4 are recorded" in faults


def test_limits_depend_on_the_target() -> None:
    resources = resources_with(registers=128, shared=120 * 1024)
    assert problems(resources, "sm_90") == []
    assert problems(resources, "sm_120") == ["takes 122880 bytes of shared memory of 101376"]


def test_the_record_is_a_budget() -> None:
    then = resources_with(registers=100, shared=1000)
    record = Record("3.9.0", "2000-01-01", "here", {"kernel": {"sm_90": then}})
    assert Record.from_json(record.to_json()) == record
    assert record.exceeded("kernel", "sm_90", then, triton="3.9.0") == []
    assert record.exceeded("kernel", "sm_90", replace(then, registers=99), triton="3.9.0") == []
    more = replace(then, registers=101, shared=1001)
    assert record.exceeded("kernel", "sm_90", more, triton="3.9.0") == [
        "takes 101 registers, 100 are recorded",
        "takes 1001 shared, 1000 are recorded",
    ]
    narrower = replace(then, wide_loads=0, narrow_loads=32)
    assert record.exceeded("kernel", "sm_90", narrower, triton="3.9.0") == [
        "has no 16-byte loads, 4 are recorded",
        "takes 32 narrow loads, 1 are recorded",
    ]
    assert record.exceeded("kernel", "sm_90", narrower, triton="3.6.0") == ["has no 16-byte loads, 4 are recorded"]
    assert record.exceeded("kernel", "sm_90", more, triton="3.6.0") == []
    assert record.exceeded("kernel", "sm_90", replace(then, spills=8), triton="3.6.0") == ["spills 8 bytes per thread"]
    assert record.exceeded("kernel", "sm_80", then, triton="3.9.0") == ["is not in the record"]


def test_targets_by_any_of_their_names() -> None:
    assert [capability(name) for name in ("sm_90", "SM90", "90", "sm90")] == [90] * 4
    with pytest.raises(UsageError, match="no kernels for target 'sm_75'") as error:
        capability("sm_75")
    assert "sdpa" in str(error.value)


def test_cubins_with_what_a_launch_needs(tmp_path: Path) -> None:
    told = Told()
    work = select(["87"], kernels=["lsa_forward"], dtypes=["fp16"], head_dims=[32])
    path = write_cubins(tmp_path / "cubins", work, ptx_version=85, progress=told)
    kernels = json.loads(path.read_text())["kernels"]
    assert [k["variant"] for k in kernels] == ["", "two heads", "pads attend", "pads attend two heads"]
    assert told.calls[1] == ("compiled", "sm_87 lsa_forward fp16 32 two heads", 0.5)
    for kernel in kernels:
        cubin = (path.parent / kernel["cubin"]).read_bytes()
        assert cubin[:4] == b"\x7fELF"
        assert kernel["sha256"] == hashlib.sha256(cubin).hexdigest()
        assert kernel["entry"].encode() in cubin
        ptx = (path.parent / kernel["ptx"]).read_text()
        assert ".version 8.5" in ptx and ".target sm_87" in ptx
        parameters = re.findall(r"\.param (\.\w+)", ptx.partition(".entry")[2].partition(")")[0])
        names = {"*": ".u64", "i": ".u32", "f": ".f32"}
        assert [names[argument["type"][0]] for argument in kernel["arguments"]] == parameters
        assert f".reqntid {kernel['threads']}" in ptx
        assert kernel["threads"] == 128
        assert kernel["constants"]["D"] == 32
    assert [a["name"] for a in kernels[0]["arguments"]][:3] == ["p_qkv", "p_bias", "p_out"]
    assert [a["value"] for a in kernels[0]["arguments"][-2:]] == ["null", "null"]
