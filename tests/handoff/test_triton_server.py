"""Model repositories, parsed with Triton's own messages (tritonclient) and compared with the graph that they serve."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from stand_ins import ADA, BATCHES, ORIN, RTX
from tiny_graphs import CLASSES, PALETTE, MakeBundle

from twins_trt.errors import BundleError
from twins_trt.handoff import HandoffOptions, resolve_handoff, write_handoff
from twins_trt.runtime import Bundle

model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")

NAME = "twins_svt-s_fpn"


def config_of(bundle: Bundle, **options: Any) -> Any:
    """The parsed configuration; a field that Triton does not know raises."""
    files = resolve_handoff(bundle, "triton-server", options=HandoffOptions(**options)).files
    text = files[f"{options.get('name', NAME)}/config.pbtxt"]
    assert isinstance(text, bytes)
    return text_format.Parse(text.decode(), model_config.ModelConfig())


def test_a_graph_of_dynamic_batch(make_bundle: MakeBundle) -> None:
    config = config_of(make_bundle(24, 32, batch=BATCHES, outputs=("mask", "logits")))
    assert (config.name, config.backend, config.max_batch_size) == (NAME, "onnxruntime", 16)
    assert config.default_model_filename == "model.onnx"
    assert [(t.name, t.data_type, list(t.dims)) for t in (*config.input, *config.output)] == [
        ("image", model_config.TYPE_UINT8, [24, 32, 3]),
        ("mask", model_config.TYPE_UINT8, [24, 32]),
        ("logits", model_config.TYPE_FP32, [5, 6, 8]),
    ]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, model_config.ModelInstanceGroup.KIND_AUTO)
    ]
    assert [(w.name, w.batch_size) for w in config.model_warmup] == [("black_1", 1), ("black_16", 16)]
    assert list(config.model_warmup[0].inputs["image"].dims) == [24, 32, 3]
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert json.loads(parameters["classes"]) == list(CLASSES)
    assert json.loads(parameters["palette"]) == [list(colour) for colour in PALETTE]
    assert json.loads(parameters["mean"]) == [123.675, 116.28, 103.53]
    assert parameters["normalised_inside"] == "true"


@pytest.mark.parametrize("batch", [1, 2, BATCHES])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_onnx_runtime_agrees_on_names_types_and_shapes(make_bundle: MakeBundle, batch: Any, dtype: str) -> None:
    """What Triton checks when it loads the model: with batching the first dimension is left out and must be dynamic."""
    onnxruntime = pytest.importorskip("onnxruntime")
    bundle = make_bundle(24, 32, batch=batch, dtype=dtype, outputs=("logits", "mask"))
    config = config_of(bundle)
    session = onnxruntime.InferenceSession(bundle.graph, providers=["CPUExecutionProvider"])
    types = {"tensor(uint8)": model_config.TYPE_UINT8, "tensor(float)": model_config.TYPE_FP32}
    for ours, theirs in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [tensor.name for tensor in ours] == [tensor.name for tensor in theirs]
        for tensor, served in zip(ours, theirs, strict=True):
            shape = [dim if isinstance(dim, int) else -1 for dim in served.shape]
            assert tensor.data_type == types[served.type]
            assert ([-1] if config.max_batch_size else []) + list(tensor.dims) == shape


def test_a_graph_of_fixed_batch_is_served_as_it_is(make_bundle: MakeBundle) -> None:
    config = config_of(make_bundle(24, 32, batch=2))
    assert config.max_batch_size == 0 and list(config.input[0].dims) == [2, 24, 32, 3]
    assert not config.HasField("dynamic_batching")
    assert [(w.batch_size, list(w.inputs["image"].dims)) for w in config.model_warmup] == [(1, [2, 24, 32, 3])]
    with pytest.raises(BundleError, match="takes 2 images at a time, not up to 8") as error:
        config_of(make_bundle(24, 32, batch=2), max_batch=8)
    assert error.value.fix is not None and error.value.fix.endswith("--batch 1:8:8")


def test_a_graph_of_dynamic_size(make_bundle: MakeBundle) -> None:
    config = config_of(make_bundle((8, 24, 64), (8, 32, 64), batch=BATCHES))
    assert list(config.input[0].dims) == [-1, -1, 3] and list(config.output[0].dims) == [-1, -1]
    assert list(config.model_warmup[0].inputs["image"].dims) == [24, 32, 3]
    assert not config.HasField("optimization")


def test_one_engine(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(24, 32, batch=BATCHES, engines=(RTX, ADA))
    config = config_of(bundle, instances=2, queue_delay=0, max_batch=8, name="street")
    assert (config.name, config.backend, config.max_batch_size) == ("street", "tensorrt", 8)
    assert config.default_model_filename == "model.plan" and not config.cc_model_filenames
    assert config.optimization.cuda.graphs
    assert [(g.count, g.kind) for g in config.instance_group] == [(2, model_config.ModelInstanceGroup.KIND_GPU)]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    out = write_handoff(resolve_handoff(bundle, "triton-server", options=HandoffOptions(name="street")), tmp_path / "m")
    assert (out / "street" / "1" / "model.plan").read_text() == ADA.file
    assert (out / "street" / "labels.txt").read_text().split() == list(CLASSES)
    assert "TensorRT 10.13.3" in (out / "README.md").read_text()
    with pytest.raises(BundleError, match="takes 1 to 16 images at a time, not up to 17"):
        config_of(bundle, max_batch=17)


def test_an_engine_for_each_compute_capability(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(engines=(ORIN, ADA))
    config = config_of(bundle)
    assert dict(config.cc_model_filenames) == {"8.7": "model_sm_87.plan", "8.9": "model_sm_89.plan"}
    assert config.default_model_filename == "model_sm_87.plan"
    files = resolve_handoff(bundle, "triton-server").files
    assert files[f"{NAME}/1/model_sm_89.plan"] == bundle.file(ADA.file)
    both = type(ADA)("engines/both", "tensorrt", "10", ("sm_86", "sm_89"))
    assert not config_of(make_bundle(engines=(both,))).cc_model_filenames


def test_what_clients_have_to_do_themselves_is_said(make_bundle: MakeBundle) -> None:
    notes = resolve_handoff(make_bundle(dtype="float32", outputs=("logits",)), "triton-server").notes
    assert [re.match(r"clients have to (\w+)", note)[1] for note in notes if "clients" in note] == ["resize", "resize"]  # type: ignore[index]
    assert not any("clients" in note for note in resolve_handoff(make_bundle(), "triton-server").notes)


def test_the_readmes_example_is_python_and_names_the_tensors(make_bundle: MakeBundle) -> None:
    readme = resolve_handoff(make_bundle(24, 32), "triton-server").files["README.md"]
    assert isinstance(readme, bytes)
    code = re.search(r"```python\n(.*?)```", readme.decode(), re.DOTALL)
    assert code is not None
    constants = [node.value for node in ast.walk(ast.parse(code[1])) if isinstance(node, ast.Constant)]
    assert {"image", "UINT8", NAME, "mask", 24, 32, 3, 1} <= set(constants)
