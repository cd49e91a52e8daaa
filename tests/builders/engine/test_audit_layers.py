"""Layer lists as the log of TensorRT-RTX prints them and as engine inspectors of 8.6 to 11 give them."""

from __future__ import annotations

import json

import pytest

from twins_trt.builders.engine.layers import Layer, Tensor, parse_build_log, parse_inspector
from twins_trt.errors import BuildError

# The form of TensorRT-RTX 1.7, with names chosen to be awkward: commas, brackets and colons are legal in ONNX names.
LOG = """Layers:
Name: __mye308_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: a/qkv, [0]_myl0_1, LayerType: gemm, Inputs: [ { Name: x, y, Dimensions: [-1,49,64], Strides: [3136,64,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: w, Dimensions: [64,192], Strides: [192,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }, { Name: alpha, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: qkv, Dimensions: [49,192], Strides: [192,1], StrideOrder: [1,0], Datatype: Half, Format: (Arbitrary) Format with stride order = [1,2,0] }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: a/qkv][ONNX Layer: b[1]/c]
Name: last, LayerType: kgen, Inputs: [ { Name: qkv, Dimensions: [], Strides: [], StrideOrder: [], Datatype: Int64, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: mask, Dimensions: [1,8,8], Strides: [64,8,1], StrideOrder: [2,1,0], Datatype: UInt8, Format: (Linear) Row major linear format }, { Name: c, Dimensions: [3], Strides: [1], StrideOrder: [0], Datatype: Bool, Format: (Linear) Row major linear format }], TacticName: t_0x1, StreamId: 0, Metadata: [ONNX Layer: z]

I/O Tensors:
 Name: x, IOMode: Input, DataType: Half, Dimensions: [1,49,64], Location: Device
"""  # noqa: E501


def test_a_printed_list_reads_in_full() -> None:
    shape, gemm, last = parse_build_log(LOG)
    assert shape == Layer("__mye308_0_myl0_0", "shape_call")
    assert (gemm.name, gemm.type, gemm.tactic) == ("a/qkv, [0]_myl0_1", "gemm", "__myelin_CASK_STUB")
    assert gemm.inputs == (Tensor("x, y", (-1, 49, 64), "float16", "(Linear) Row major linear format"),)
    assert gemm.outputs[0].format == "(Arbitrary) Format with stride order = [1,2,0]"
    assert [(tensor.name, tensor.dtype, tensor.nbytes) for tensor in gemm.constants] == [
        ("w", "float16", 64 * 192 * 2),
        ("alpha", "float32", 4),
    ]
    assert gemm.nodes == ("a/qkv", "b[1]/c")
    assert [(tensor.dtype, tensor.shape, tensor.nbytes) for tensor in last.outputs] == [
        ("uint8", (1, 8, 8), 64),
        ("bool", (3,), 3),
    ]
    assert (last.inputs[0].shape, last.inputs[0].nbytes) == ((), 8)


@pytest.mark.parametrize("name", ["copy", "a/qkv, [0]", "x: y"])
@pytest.mark.parametrize(("word", "dtype"), [("Half", "float16"), ("UInt8", "uint8"), ("FP8E4M3", "float8")])
def test_both_sources_give_the_same_layer(name: str, word: str, dtype: str) -> None:
    printed = (
        f"Layers:\nName: {name}, LayerType: Gemm, Inputs: [ {{ Name: x, Dimensions: [-1,8], Datatype: {word}, Format: "
        "Row major linear }], Constants: [], Outputs: [], TacticName: t_0x1, StreamId: 0, "
        "Metadata: [ONNX Layer: a/b]\n"
    )
    tensor = {"Name": "x", "Dimensions": [-1, 8], "Datatype": word, "Format": "Row major linear"}
    layer = {"Name": name, "LayerType": "Gemm", "Inputs": [tensor], "TacticName": "t_0x1"}
    inspected = json.dumps({"Layers": [{**layer, "Metadata": "[ONNX Layer: a/b]"}], "I/O Tensors": []})
    assert parse_build_log(printed) == parse_inspector(inspected)
    assert parse_build_log(printed)[0].inputs == (Tensor("x", (-1, 8), dtype, "Row major linear"),)


def test_the_last_list_of_a_log_counts() -> None:
    other = LOG.replace("LayerType: gemm", "LayerType: correlation")
    layers = parse_build_log(f"[VERBOSE] {LOG}\n[INFO] something\n[VERBOSE] {other}[INFO] Peak memory\n")
    assert [layer.type for layer in layers] == ["shape_call", "correlation", "kgen"]


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "printed no layer list"),
        ("Layers:\nName: a, Kind: b\n", "does not read as a layer: 'Name: a, Kind: b'"),
        (LOG.replace("Dimensions: [49,192]", "Extents: [49,192]"), "does not read as a tensor: 'Name: qkv, Extents"),
    ],
)
def test_what_is_no_layer_list_is_refused(log: str, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        parse_build_log(log)


TEN = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to head",
            "LayerType": "Reformat",
            "Inputs": [
                {
                    "Name": "image",
                    "Location": "Device",
                    "Dimensions": [1, 3, 8, 8],
                    "Format/Datatype": "Row major linear FP32",
                }
            ],
            "Outputs": [
                {
                    "Name": "r",
                    "Location": "Device",
                    "Dimensions": [1, 3, 8, 8],
                    "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
                }
            ],
            "ParameterType": "Reformat",
            "TacticValue": "0x0",
            "StreamId": 0,
            "Metadata": "",
        },
        {
            "Name": "head_myl1_0",
            "LayerType": "gemm",
            "Inputs": [{"Name": "r", "Dimensions": [64, 3], "Format/Datatype": "Half"}],
            "Outputs": [
                {
                    "Name": "q",
                    "Dimensions": [64, 3],
                    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
                }
            ],
            "TacticName": "sm80_xmma_gemm",
            "Metadata": "[ONNX Layer: head/a]\x1e[ONNX Layer: head/b]",
        },
    ],
    "Bindings": ["image", "q"],
}
ELEVEN = {
    "Layers": [
        {
            "Name": "head_myl1_0",
            "LayerType": "gemm",
            "Inputs": [{"Name": "r", "Dimensions": [64, 3], "Datatype": "Half", "Format": "Row major linear format"}],
            "Constants": [{"Name": "w", "Dimensions": [3, 3], "Datatype": "BFloat16", "Format": "Row major"}],
            "Outputs": [{"Name": "q", "Dimensions": [64, 3], "Datatype": "FP8", "Format": "Row major linear format"}],
            "TacticName": "sm80_xmma_gemm",
            "Metadata": "[ONNX Layer: head/a][ONNX Layer: head/b]",
        }
    ],
    "I/O Tensors": [{"Name": "r", "IOMode": "Input", "DataType": "Half", "Dimensions": [64, 3]}],
}


def test_an_inspector_of_10_and_one_of_11_say_the_same() -> None:
    reformat, gemm = parse_inspector(json.dumps(TEN))
    assert (reformat.type, reformat.inputs[0].dtype, reformat.outputs[0].dtype) == ("reformat", "float32", "float16")
    assert reformat.outputs[0].nbytes == 3 * 64 * 2
    assert (gemm.inputs[0].dtype, gemm.outputs[0].dtype) == ("float16", "int8")
    assert gemm.nodes == ("head/a", "head/b") and gemm.tactic == "sm80_xmma_gemm"
    (newer,) = parse_inspector(json.dumps(ELEVEN))
    assert (newer.name, newer.type, newer.nodes) == (gemm.name, gemm.type, gemm.nodes)
    assert newer.inputs[0] == Tensor("r", (64, 3), "float16", "Row major linear format")
    assert (newer.outputs[0].dtype, newer.constants[0].dtype) == ("float8", "bfloat16")
    assert newer.constants[0].nbytes == 18


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "holds no layer list"),
        ("{}", "holds no layer list"),
        ("[]", "holds no layer list"),
        ('{"Layers": []}', "names no inputs and outputs"),
        ('{"Layers": ["conv1"], "Bindings": ["x"]}', "keeps layer names only"),
    ],
)
def test_answers_without_detail_are_refused(text: str, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        parse_inspector(text)


def test_layers_survive_json() -> None:
    for layer in parse_build_log(LOG):
        assert Layer.from_json(json.loads(json.dumps(layer.to_json()))) == layer
