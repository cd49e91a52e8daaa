"""Audits of layer lists, against counts made by hand."""

from __future__ import annotations

import json

import pytest

from twins_trt.builders.engine.audit import Audit, LargeTensor, audit_layers, check_fused, describe_layer, is_copy
from twins_trt.builders.engine.layers import Layer, Tensor
from twins_trt.errors import UnfusedAttentionError


def half(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, "float16")


def single(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, "float32")


WEIGHT = half("w", 64, 64)
LAYERS = (
    Layer("__mye_0", "shape_call"),
    Layer("s/qkv_myl0_0", "gemm", (half("x", 49, 64),), (half("qkv", 49, 192),), (WEIGHT,), nodes=("s.attn/qkv",)),
    Layer("__myl_TranReshMove_myl0_1", "kgen", (half("qkv", 49, 192),), (half("q", 49, 64), half("k", 49, 64))),
    Layer(
        "_gemm_mha_v2_myl0_2",
        "kgen",
        (half("q", 49, 64), half("k", 49, 64), half("k", 49, 64)),
        (half("o", 49, 64),),
        tactic="_gemm_mha_v2_0xab",
        nodes=("s.attn/scores", "s.attn/softmax", "s.attn/values"),
    ),
    Layer("__myl_CastMeanSubMul_myl0_3", "kgen", (half("o", 49, 64),), (single("n", 49, 64),), nodes=("s.ffn/norm",)),
    Layer("__myl_FcAddMul_myl0_4", "runtime_fusion", (single("n", 49, 64),), (half("y", 49, 64),), (WEIGHT,)),
)
UNFUSED = (
    Layer("a/scores", "gemm", (half("q", 9, 8),), (half("s", 9, 9),), nodes=("a.attn/scores",)),
    Layer("__myl_MaxrSubExpSum_1", "kgen", (half("s", 9, 9),), (half("p", 9, 9),), nodes=("a.attn/softmax",)),
    Layer("__myl_DivMul_2", "kgen", (half("p", 9, 9),), (half("p2", 9, 9),), nodes=("a.attn/softmax", "a.attn/drop")),
    Layer("__myl_MaxrSubExpSumDiv_3", "kgen", (single("s", 9, 9),), (half("p", 9, 9),), nodes=("b.attn/softmax",)),
    Layer("__myl_Div_3", "kgen", (half("p", 9, 9),), (half("p", 9, 9),), nodes=("b.attn/softmax",)),
    Layer("__myl_MaxrSubExpSumDiv_4", "kgen", (half("s", 9, 9),), (half("p", 9, 9),)),
)


def test_kernels_copies_and_bytes() -> None:
    audit = audit_layers(LAYERS, expected_attentions=1)
    assert audit.kernels == 5  # the shape call runs on the host
    assert audit.by_type == {"kgen": 3, "gemm": 1, "runtime_fusion": 1}
    assert (audit.attentions, audit.expected_attentions) == (1, 1)
    assert (audit.copies, audit.pointwise) == (1, 1)
    unit = 49 * 64 * 2  # bytes of one [49, 64] in float16
    # Read and written, kernel by kernel; k is read twice by the attention; weights are left out.
    assert audit.bytes_moved == unit * ((1 + 3) + (3 + 2) + (3 + 1) + (1 + 2) + (2 + 1))
    assert audit.float32 == ("s.ffn/norm", "__myl_FcAddMul_myl0_4")
    assert audit.largest[0] == LargeTensor("s.attn/qkv", (49, 192), "float16", 3 * unit)
    assert [tensor.nbytes for tensor in audit.largest] == [3 * unit, 2 * unit, unit, unit, unit]
    assert audit.unfused_attentions == audit.float32_attentions == () and not audit.dynamic
    check_fused(audit)


def test_softmax_outside_of_a_fused_attention_is_named_once_per_block() -> None:
    audit = audit_layers((*LAYERS, *UNFUSED), expected_attentions=4)
    assert audit.unfused_attentions == ("a.attn", "b.attn", "__myl_MaxrSubExpSumDiv_4")
    assert audit.float32_attentions == ("b.attn",)
    with pytest.raises(UnfusedAttentionError) as caught:
        check_fused(audit)
    assert caught.value.cause == "3 of 4 attentions are not fused: a.attn, b.attn, __myl_MaxrSubExpSumDiv_4"
    assert "allow_unfused=True" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("expected", "layers", "words"),
    [
        (None, LAYERS, None),
        (1, LAYERS, None),
        (2, LAYERS, "1 of 2 attentions are not fused: which ones, the compiler does not say"),
        (None, (*LAYERS, UNFUSED[1]), "1 of 2 attentions are not fused: a.attn"),
        (1, (*LAYERS, UNFUSED[1]), "1 of 1 attentions are not fused: a.attn"),
    ],
)
def test_checking_for_fusion(expected: int | None, layers: tuple[Layer, ...], words: str | None) -> None:
    audit = audit_layers(layers, expected_attentions=expected)
    if words is None:
        check_fused(audit)
        return
    with pytest.raises(UnfusedAttentionError) as caught:
        check_fused(audit)
    assert caught.value.cause == words


FOREIGN = "{ForeignNode[stages.0.blocks.0.attn/scores.../stages.0.blocks.0.attn/softmax]}"
OPAQUE = (
    Layer(f"Reformatting CopyNode for Input Tensor 0 to {FOREIGN}", "reformat", (half("x", 9, 8),), (half("q", 9, 8),)),
    Layer(FOREIGN, "myelin", (half("q", 9, 8),), (half("o", 9, 8),), nodes=("stages.0.blocks.0.attn/softmax",)),
)


def test_what_tensorrt_8_6_does_not_list_is_not_known_and_refuses_nothing() -> None:
    """It shows a transformer as one layer, also with detailed verbosity (NVIDIA/TensorRT#4157)."""
    audit = audit_layers(OPAQUE, expected_attentions=8)
    assert (audit.kernels, audit.attentions, audit.unfused_attentions, audit.opaque) == (2, 0, (), (FOREIGN,))
    assert "not known       what 1 layer holds: this compiler does not list it" in audit.table()
    check_fused(audit)
    assert Audit.from_json(json.loads(json.dumps(audit.to_json()))) == audit
    earlier = {key: value for key, value in audit.to_json().items() if key != "opaque"}
    assert Audit.from_json(earlier).opaque == ()


def test_an_unfused_attention_beside_an_opaque_layer_is_refused() -> None:
    with pytest.raises(UnfusedAttentionError) as caught:
        check_fused(audit_layers((*OPAQUE, UNFUSED[1]), expected_attentions=8))
    assert caught.value.cause == "1 of 8 attentions are not fused: a.attn"


def test_a_copy_beside_a_softmax_is_no_softmax() -> None:
    copy = Layer("Reformatting CopyNode for Input Tensor 0 to a.attn/softmax", "reformat")
    assert audit_layers((copy,)).unfused_attentions == ()


def test_a_node_called_mha_does_not_count_as_fused() -> None:
    layer = Layer("stages.0.mha/qkv_myl0_1", "gemm", nodes=("stages.0.mha/qkv",), tactic="__myelin_CASK_STUB")
    assert audit_layers((layer,)).attentions == 0


def test_arithmetic_on_sizes_is_no_kernel() -> None:
    size, sizes = Tensor("hvar", (1,), "int64"), Tensor("many", (-1,), "int64")
    layers = (
        Layer("[ShapeHostToDeviceCopy 0]", "shapehosttodevice", (), (size, size)),
        Layer("__mye1", "reshape", (), (size,)),
        Layer("cast_hvar", "cast", (size,), (size,)),
        Layer("__mye_0", "shape_call"),
    )
    assert audit_layers(layers).kernels == 0
    # The same kinds are kernels when they handle activations, come from the graph, or have a tactic.
    for layer in (
        Layer("cast", "cast", (size,), (half("x", 1),)),
        Layer("cast", "cast", (size,), (sizes,)),
        Layer("cast", "cast", (size,), (size,), nodes=("stages.0.blocks.0.attn/cast",)),
        Layer("cast", "cast", (size,), (size,), tactic="0x1"),
    ):
        assert audit_layers((layer,)).kernels == 1


def test_dynamic_extents_are_said() -> None:
    layer = Layer("fc", "gemm", (half("x", -1, 64),), (half("y", -1, 64),))
    audit = audit_layers((layer,))
    assert audit.dynamic and audit.bytes_moved == 2 * 64 * 2
    assert "dynamic extents counted as 1" in audit.table()


@pytest.mark.parametrize(
    ("name", "kind", "copy"),
    [
        ("__myl_TranReshMoveSlicConcReplCast_myl0_3", "kgen", True),
        ("__myl_ConcTran_myl0_0", "kgen", True),
        ("__myl_ReshAddTran_myl0_1", "kgen", False),
        ("__myl_Fc_myl0_1", "runtime_fusion", False),
        ("_gemm_mha_v2_myl0_1", "kgen", False),
        ("Reformatting CopyNode for Input Tensor 0", "reformat", True),
        ("PWN(gelu)", "pointwisev2", False),
    ],
)
def test_what_is_a_copy(name: str, kind: str, copy: bool) -> None:
    assert is_copy(Layer(name, kind)) is copy


def test_json_and_table() -> None:
    audit = audit_layers((*LAYERS, *UNFUSED), expected_attentions=4)
    assert Audit.from_json(json.loads(json.dumps(audit.to_json()))) == audit
    table = audit.table()
    assert table.splitlines()[0].split() == ["kernels", "11:", "8", "kgen,", "2", "gemm,", "1", "runtime_fusion"]
    assert "attentions fused  1 of 4" in table and "in float32      b.attn" in table
    assert max(len(line) for line in table.splitlines()) < 120
    assert audit_layers(()).table().splitlines()[1] == "attentions fused  0 of ?"


def test_layers_are_described_by_their_nodes() -> None:
    assert describe_layer(LAYERS[3]) == "s.attn/scores +2"
    assert describe_layer(LAYERS[1]) == "s.attn/qkv"
    assert describe_layer(LAYERS[5]) == "__myl_FcAddMul_myl0_4"
