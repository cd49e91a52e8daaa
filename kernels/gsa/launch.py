"""Tiling and launch of the GSA kernels. Imports triton only where it launches.

Microseconds in docstrings are of comparisons of candidates on an H200, which no results file holds. What the kernels
take is in docs/measurements.md.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.case import DTYPES, Case, Tiling, dtype_name, tiling
from twins_trt.kernels.device import (
    MAX_BLOCKS,
    MAX_OFFSET,
    batch_parts,
    capability,
    dot_precision,
    last_axis_dense,
    multiprocessors,
)

HEAD_DIMS = (32, 64)
SUM_BLOCK = 128
SUM_TILING = tiling(4, 1, {"PARTS": 16, "BLOCK": SUM_BLOCK})


def forward_keys(*, dtype: str, head_dim: int) -> int:
    """How many keys forward takes at a time: tf32x3 holds operands twice, and more of them would spill."""
    return 64 if dtype != "fp32" else 32 if head_dim == 32 else 16


def backward_q_keys(*, dtype: str) -> int:
    """How many keys the backward of the queries takes at a time, for the same reason."""
    return 16 if dtype == "fp32" else 64


@functools.cache
def forward_tiling(*, dtype: str, head_dim: int, tail: bool, precision: str, small: bool, capability: int) -> Tiling:
    """128 queries at a time; 64 where there would be too few programs (`small`).

    On an H200 (sm_90), 64 queries were faster for many programs too, in so few registers that six or five programs
    share a multiprocessor: 76 microseconds in place of 86 (stage 1 of SVT-S, 16 images of 512×512), 57 in place of 60
    (PCPVT-S, head dim 64). Few programs gained nothing, or lost.
    """
    registers = None
    if dtype == "fp32":
        queries, warps, stages = 128, 8, 2
    elif small:
        queries, warps, stages = 64, 4, 3
    elif capability == 90:
        queries, warps, stages = 64, 4, 2
        registers = 80 if head_dim == 32 else None if tail else 96  # with a tail, 96 would spill
    else:
        queries, warps, stages = 128, 8, 3
    if capability // 10 in (10, 11) and head_dim == 32 and dtype != "fp32":
        registers = 128  # without a limit, ptxas 13 takes 80 registers here and spills
    keys = forward_keys(dtype=dtype, head_dim=head_dim)
    constants = {"BQ": queries, "BK": keys, "D": head_dim, "TAIL": tail, "PRECISION": precision}
    return tiling(warps, stages, constants, registers)


def one_program_holds_all_keys(*, dtype: str, head_dim: int, keys: int, capability: int) -> bool:
    """Whether backward takes the form in which one program holds all keys of a head.

    Head dim 64 fits the registers only where the matrix unit's accumulators take none of them, or products read shared
    memory (sm_90, sm_100 to sm_110).
    """
    return keys <= 256 and dtype != "fp32" and (head_dim == 32 or capability // 10 in (9, 10, 11))


@functools.lru_cache(maxsize=256)
def backward_tiling(*, head_dim: int, keys: int, precision: str, capability: int) -> Tiling:
    """32 queries at a time, the next ones loaded meanwhile where they fit beside the keys (head dim 32).

    On an H200 (sm_90), 64 at a time were faster for head dim 32, although nothing is loaded meanwhile: 233 microseconds
    in place of 350 (stage 1 of SVT-S, 16 images of 512×512).
    """
    queries, stages, columns = 32, 2 if head_dim == 32 else 1, 1
    if capability == 90 and head_dim == 32:
        queries, stages, columns = 64, 1, 4  # 64 · 4: a number for each thread
    block = 128 if keys <= 128 else 256
    constants = {
        "BQ": queries,
        "BK": block,
        "D": head_dim,
        "TAIL": keys != block,
        "COLUMNS": columns,
        "PRECISION": precision,
    }
    return tiling(8, stages, constants)


@functools.cache
def backward_q_tiling(*, dtype: str, head_dim: int, tail: bool, precision: str) -> Tiling:
    columns, stages = head_dim, 2
    if dtype == "fp32" and head_dim == 64:
        columns, stages = 16, 1
    constants = {
        "BQ": 128,
        "BK": backward_q_keys(dtype=dtype),
        "D": head_dim,
        "DC": columns,
        "TAIL": tail,
        "PRECISION": precision,
    }
    return tiling(8, stages, constants)


@functools.cache
def backward_kv_tiling(*, dtype: str, head_dim: int, precision: str) -> Tiling:
    queries, columns, stages = (64 if head_dim == 32 else 32), head_dim, 2
    if dtype == "fp32":
        queries, columns, stages = (16, 32, 2) if head_dim == 32 else (16, 16, 1)
    return tiling(8, stages, {"BQ": queries, "BK": 128, "D": head_dim, "DC": columns, "PRECISION": precision})


@functools.lru_cache(maxsize=256)
def splits_of_queries(
    queries: int, programs: int, head_dim: int, block: int, multiprocessors: int, *, in_rounds: bool = False
) -> int:
    """Into how many parts backward splits the queries, when each part takes `programs` programs.

    More parts fill the multiprocessors better, but each part's sums of dk and dv are written and read. The cost is
    predicted in cycles per key: a tenth for a score (two exp2, and their latency), and one for 16 bytes of memory
    traffic on each multiprocessor.

    in_rounds: the other rule, which was measured on an H200 for the kernel that holds all keys, where one program
    fills a multiprocessor. Time is counted in blocks of queries: those of a program, and two more for its keys and
    sums, in each round of programs. For head dim 64 the first rule was faster (117 microseconds in place of 142 at
    stage 3 of PCPVT-S, 16 images of 512×512) unless its most parts, 64, leave multiprocessors idle (40 in place of 23
    at stage 1, one image).
    """
    most = max(1, min(64, queries // (4 * block)))
    if in_rounds and (head_dim == 32 or programs * most < multiprocessors):
        blocks = -(-queries // block)

        def rounds(each: int) -> int:
            return -(-programs * -(-blocks // each) // multiprocessors) * (each + 2)

        return -(-blocks // min(range(1, blocks + 1), key=rounds))

    def cycles(parts: int) -> float:
        rounds = -(-programs * parts // multiprocessors)
        return rounds * queries / parts * 0.1 + programs * parts * head_dim / multiprocessors

    return min(range(1, most + 1), key=cycles)


def cases(capability: int) -> Iterator[Case]:
    """Every GSA kernel that is launched on sm_`capability`."""
    here = "twins_trt.kernels.gsa.kernel:"
    strides = ("q_b", "q_n", "kv_b", "kv_m", "channels")
    blocks = "(heads, ceil(queries / BQ), batch)"
    for dtype in DTYPES:
        precision = "tf32x3" if dtype == "fp32" else "tf32"
        for head_dim in HEAD_DIMS:
            for tail in (False, True):
                any_keys = "any keys" if tail else ""
                for small in (False,) if dtype == "fp32" else (False, True):
                    variant = " ".join(filter(None, (any_keys, "few queries" if small else "")))
                    cut = forward_tiling(
                        dtype=dtype,
                        head_dim=head_dim,
                        tail=tail,
                        precision=precision,
                        small=small,
                        capability=capability,
                    )
                    name = here + "gsa_forward_kernel"
                    yield Case(name, dtype, head_dim, variant, cut, ("p_lse",), strides, blocks)
                cut = backward_q_tiling(dtype=dtype, head_dim=head_dim, tail=tail, precision=precision)
                name = here + "gsa_backward_q_kernel"
                aligned = ("g_b", "g_n", "depth", *strides)
                yield Case(name, dtype, head_dim, any_keys, cut, ("p_lse", "p_delta"), aligned, blocks)
            # one part of the queries is written in the dtype of keys and values, several are summed in fp32
            sums = (("", ("p_dkv",)),) if dtype == "fp32" else (("", ("p_dkv",)), ("one part", ()))
            for variant, float32 in sums:
                cut = backward_kv_tiling(dtype=dtype, head_dim=head_dim, precision=precision)
                name = here + "gsa_backward_kv_kernel"
                grid = "(heads, ceil(keys / BK) * splits, batch)"
                yield Case(name, dtype, head_dim, variant, cut, ("p_lse", "p_delta", *float32), aligned, grid)
            for keys in (128, 100, 256, 200):
                if not one_program_holds_all_keys(dtype=dtype, head_dim=head_dim, keys=keys, capability=capability):
                    continue
                block = 128 if keys <= 128 else 256
                cut = backward_tiling(head_dim=head_dim, keys=keys, precision=precision, capability=capability)
                name = here + "gsa_backward_kernel"
                for part, float32 in sums:
                    variant = " ".join(
                        filter(None, (f"{block} keys" if keys == block else f"up to {block} keys", part))
                    )
                    grid = "(heads, splits, batch)"
                    multiples = ("g_b", "g_n", *strides)
                    yield Case(name, dtype, head_dim, variant, cut, ("p_lse", *float32), multiples, grid)
        yield Case(
            here + "gsa_sum_splits_kernel", dtype, 0, "", SUM_TILING, ("p_parts",), ("size",), "(ceil(size / BLOCK))"
        )


def gsa_forward(q: Tensor, kv: Tensor, *, num_heads: int) -> tuple[Tensor, Tensor]:
    """GSA by its Triton kernel. Arguments as `gsa_reference`; both may be strided (channels dense).

    Returns the result [B, N, C] and log-sum-exp of the scaled scores, fp32 [B, heads, N].
    Raises UsageError where strides are too large for 32-bit offsets.
    """
    from twins_trt.kernels.gsa.kernel import gsa_forward_kernel

    q, kv = last_axis_dense(q), last_axis_dense(kv)
    (batch, queries, channels), keys = q.shape, kv.shape[1]
    head_dim = channels // num_heads
    _check_offsets(q)
    out = q.new_empty(batch, queries, channels)
    lse = q.new_empty(batch, num_heads, queries, dtype=torch.float32)
    dtype, precision = dtype_name(q.dtype), dot_precision(q)
    small = -(-queries // 128) * num_heads * batch < 2 * multiprocessors(q)
    options = forward_tiling(
        dtype=dtype,
        head_dim=head_dim,
        tail=keys % forward_keys(dtype=dtype, head_dim=head_dim) != 0,
        precision=precision,
        small=small,
        capability=capability(q),
    ).options
    with torch.cuda.device_of(q):
        for some_q, some_kv, some_out, some_lse in batch_parts(MAX_BLOCKS, q, kv, out, lse):
            gsa_forward_kernel[(num_heads, -(-queries // options["BQ"]), some_q.shape[0])](
                some_q,
                some_kv,
                some_out,
                some_lse,
                *q.stride()[:2],
                *kv.stride()[:2],
                queries,
                keys,
                channels,
                head_dim**-0.5,
                **options,
            )
    return out, lse


def gsa_backward(
    grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, *, num_heads: int
) -> tuple[Tensor, Tensor]:
    """Gradients of GSA with respect to `q` and `kv`, by Triton kernels.

    grad: [B, N, C], gradient of the result, may be strided (channels dense). out, lse: results of `gsa_forward`.
    """
    grad, q, kv = last_axis_dense(grad), last_axis_dense(q), last_axis_dense(kv)
    _check_offsets(q, grad)
    dq = torch.empty_like(out)
    dkv = kv.new_empty(kv.shape)
    one = one_program_holds_all_keys(
        dtype=dtype_name(q.dtype),
        head_dim=q.shape[2] // num_heads,
        keys=kv.shape[1],
        capability=capability(q),
    )
    launch = _backward_in_one if one else _backward_in_two
    with torch.cuda.device_of(q):
        for part in batch_parts(MAX_BLOCKS, grad, q, kv, out, lse, dq, dkv):
            some_grad, some_q, some_kv, some_out, some_lse, some_dq, some_dkv = part
            launch(
                some_grad,
                some_q,
                some_kv,
                out=some_out,
                lse=some_lse,
                dq=some_dq,
                dkv=some_dkv,
                num_heads=num_heads,
            )
    return dq, dkv


def _backward_in_one(
    grad: Tensor, q: Tensor, kv: Tensor, *, out: Tensor, lse: Tensor, dq: Tensor, dkv: Tensor, num_heads: int
) -> None:
    from twins_trt.kernels.gsa.kernel import gsa_backward_kernel

    (batch, queries, channels), keys = q.shape, kv.shape[1]
    head_dim = channels // num_heads
    options = backward_tiling(
        head_dim=head_dim, keys=keys, precision=dot_precision(q), capability=capability(q)
    ).options
    block = options["BQ"]
    splits = splits_of_queries(
        queries, num_heads * batch, head_dim, block, multiprocessors(q), in_rounds=capability(q) == 90
    )
    per_split = -(-queries // (splits * block)) * block
    splits = -(-queries // per_split)
    parts = _parts(dkv, splits)
    gsa_backward_kernel[(num_heads, splits, batch)](
        grad,
        q,
        kv,
        out,
        lse,
        dq,
        parts,
        *grad.stride()[:2],
        *q.stride()[:2],
        *kv.stride()[:2],
        queries,
        keys,
        channels,
        per_split,
        head_dim**-0.5,
        **options,
    )
    _sum_splits(parts, dkv)


def _backward_in_two(
    grad: Tensor, q: Tensor, kv: Tensor, *, out: Tensor, lse: Tensor, dq: Tensor, dkv: Tensor, num_heads: int
) -> None:
    from twins_trt.kernels.gsa.kernel import gsa_backward_kv_kernel, gsa_backward_q_kernel

    (batch, queries, channels), keys = q.shape, kv.shape[1]
    head_dim = channels // num_heads
    dtype, precision = dtype_name(q.dtype), dot_precision(q)
    strides = (*grad.stride()[:2], *q.stride()[:2], *kv.stride()[:2])
    delta = torch.empty_like(lse)
    tail = keys % backward_q_keys(dtype=dtype) != 0
    options = backward_q_tiling(dtype=dtype, head_dim=head_dim, tail=tail, precision=precision).options
    gsa_backward_q_kernel[(num_heads, -(-queries // options["BQ"]), batch)](
        grad,
        q,
        kv,
        out,
        lse,
        delta,
        dq,
        *strides,
        queries,
        keys,
        channels,
        head_dim,
        head_dim**-0.5,
        **options,
    )
    options = backward_kv_tiling(dtype=dtype, head_dim=head_dim, precision=precision).options
    key_blocks, block = -(-keys // options["BK"]), options["BQ"]
    splits = splits_of_queries(queries, key_blocks * num_heads * batch, head_dim, block, multiprocessors(q))
    per_split = -(-queries // (splits * block)) * block
    splits = -(-queries // per_split)
    parts = _parts(dkv, splits)
    gsa_backward_kv_kernel[(num_heads, key_blocks * splits, batch)](
        grad,
        q,
        kv,
        lse,
        delta,
        parts,
        *strides,
        queries,
        keys,
        channels,
        head_dim,
        per_split,
        splits,
        head_dim**-0.5,
        **options,
    )
    _sum_splits(parts, dkv)


def _parts(dkv: Tensor, splits: int) -> Tensor:
    """Where backward writes its sums: fp32 [splits, B, M, 2C], or the gradient itself where there is one part."""
    return dkv if splits == 1 else dkv.new_empty(splits, *dkv.shape, dtype=torch.float32)


def _sum_splits(parts: Tensor, dkv: Tensor) -> None:
    from twins_trt.kernels.gsa.kernel import gsa_sum_splits_kernel

    if parts is dkv:
        return
    size = dkv.numel()
    gsa_sum_splits_kernel[(-(-size // SUM_BLOCK),)](parts, dkv, size, parts.shape[0], **SUM_TILING.options)


def _check_offsets(*rows: Tensor) -> None:
    for x in rows:
        reach = 128 * abs(x.stride(1)) + x.shape[2]
        if reach > MAX_OFFSET:
            raise UsageError(
                f"128 rows of a tensor span {reach} elements in memory, more than the {MAX_OFFSET} a kernel addresses",
                "pass a contiguous tensor, or backend='sdpa'",
            )
