"""DeepStream hand-offs: configurations against the documented properties, the probe run with a stand-in for pyds."""

from __future__ import annotations

import configparser
import ctypes
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from nvinferserver_schema import plugin_control
from stand_ins import ADA, BATCHES, ORIN, load_shipped, module
from tiny_graphs import CLASSES, MakeBundle

from twins_trt.data.preprocessing import Preprocessing, normalized_planes
from twins_trt.errors import BundleError
from twins_trt.handoff import HandoffOptions, resolve_handoff, write_handoff

# Keys of the group [property] that the page on Gst-nvinfer documents, those that a hand-off may use.
NVINFER_KEYS = {
    "gpu-id",
    "gie-unique-id",
    "process-mode",
    "model-engine-file",
    "labelfile-path",
    "batch-size",
    "network-type",
    "output-tensor-meta",
    "output-blob-names",
    "infer-dims",
    "network-input-order",
    "model-color-format",
    "maintain-aspect-ratio",
    "scaling-filter",
    "net-scale-factor",
    "offsets",
}


def test_pixels_go_through_nvinferserver(make_bundle: MakeBundle) -> None:
    handoff = resolve_handoff(make_bundle(24, 32, batch=BATCHES, engines=(ORIN,)), "deepstream")
    text = handoff.files["config_infer.txt"]
    assert isinstance(text, bytes)
    config = text_format.Parse(text.decode(), plugin_control())  # raises for a field or a value that is not documented
    infer = config.infer_config
    assert infer.backend.triton.model_name == "twins_svt-s_fpn" and infer.max_batch_size == 16
    (root,) = infer.backend.triton.model_repo.root
    assert {f"{root.removeprefix('./')}/twins_svt-s_fpn/{f}" for f in ("config.pbtxt", "1/model.plan")} <= set(
        handoff.files
    )
    assert infer.preprocess.tensor_name == "image" and infer.preprocess.tensor_order == 2  # NHWC
    assert infer.preprocess.network_format == 1  # RGB
    assert infer.preprocess.normalize.scale_factor == 1.0 and not infer.preprocess.normalize.channel_offsets
    assert config.output_control.output_tensor_meta and infer.postprocess.HasField("other")
    assert infer.postprocess.labelfile_path in handoff.files


def test_planes_go_through_nvinfer_nearly(make_bundle: MakeBundle, tmp_path: Path, rng: np.random.Generator) -> None:
    bundle = make_bundle(24, 32, batch=BATCHES, dtype="float32", outputs=("logits",), engines=(ORIN,))
    out = write_handoff(resolve_handoff(bundle, "deepstream"), tmp_path / "out")
    parser = configparser.ConfigParser()
    parser.read(out / "config_infer.txt")
    settings = dict(parser["property"])
    assert set(settings) == NVINFER_KEYS
    assert (settings["network-type"], settings["output-tensor-meta"]) == ("100", "1")
    assert (settings["infer-dims"], settings["batch-size"]) == ("3;24;32", "16")
    assert (settings["network-input-order"], settings["model-color-format"]) == ("0", "0")
    for key in ("model-engine-file", "labelfile-path"):
        assert (out / settings[key]).is_file()
    assert (out / "labels.txt").read_text().split() == list(CLASSES)
    # nvinfer computes scale·(x - offset). How far that is from the graph's normalization is what the note says.
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    planes = pixels.transpose(2, 0, 1).astype(np.float32)
    offsets = np.array([float(value) for value in settings["offsets"].split(";")], np.float32)
    fed = float(settings["net-scale-factor"]) * (planes - offsets[:, None, None])
    wanted = normalized_planes(pixels, bundle.interface.preprocessing)
    worst = np.abs(fed / wanted - 1).max()
    (note,) = (note for note in resolve_handoff(bundle, "deepstream").notes if "net-scale-factor" in note)
    assert f"up to {100 * worst:.1f} %" in note and worst < 0.02


def test_one_deviation_for_all_channels_is_exact(make_bundle: MakeBundle) -> None:
    same = Preprocessing(std=(57.0, 57.0, 57.0))
    bundle = make_bundle(dtype="float32", outputs=("logits",), preprocessing=same)
    assert "normalization is exact" in resolve_handoff(bundle, "deepstream").notes[0]


@pytest.mark.parametrize(
    ("fields", "cause", "mend"),
    [
        ({"dtype": "float32"}, "knows no uint8 tensors", ["--input", "uint8", "--batch", "1:4:16"]),
        ({"dtype": "float32", "outputs": ("mask", "logits")}, "knows no uint8", ["--input", "uint8"]),
        ({}, "a fixed batch", ["--batch", "1:4:16"]),
        ({"height": (8, 24, 64), "width": (8, 32, 64), "batch": BATCHES}, "dynamic size", ["--size", "512x512"]),
    ],
)
def test_what_deepstream_cannot_feed_is_refused(
    make_bundle: MakeBundle, fields: dict[str, Any], cause: str, mend: list[str]
) -> None:
    with pytest.raises(BundleError, match=cause) as error:
        resolve_handoff(make_bundle(**fields), "deepstream")
    assert error.value.fix is not None
    words = shlex.split(error.value.fix)
    assert words[:2] == ["twins-trt", "build"]
    assert all(word in words for word in mend)


def test_nvinfer_takes_one_engine(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(dtype="float32", outputs=("logits",), engines=(ORIN, ADA))
    with pytest.raises(BundleError, match="DeepStream takes one"):
        resolve_handoff(bundle, "deepstream")
    files = resolve_handoff(bundle, "deepstream", options=HandoffOptions(engine="sm_89")).files
    assert files["model.plan"] == bundle.file(ADA.file)
    without = resolve_handoff(make_bundle(dtype="float32", outputs=("logits",)), "deepstream")
    assert {"graph.onnx", "build_engine.sh"} <= set(without.files)


class List:
    """A GLib list as pyds shows it: past the last one, `next` raises StopIteration."""

    def __init__(self, items: list[Any]) -> None:
        self.data, self.rest = items[0], items[1:]

    @property
    def next(self) -> List:
        if not self.rest:
            raise StopIteration
        return List(self.rest)


def pyds_with(layers: dict[str, np.ndarray], *, frames: int) -> Any:
    """pyds, with `frames` frames whose tensors are `layers`, and one piece of other metadata before them."""
    infos = [SimpleNamespace(layerName=name, buffer=array.ctypes.data) for name, array in layers.items()]
    tensors = SimpleNamespace(num_output_layers=len(infos))

    def user(kind: str) -> Any:
        return SimpleNamespace(base_meta=SimpleNamespace(meta_type=kind), user_meta_data=tensors)

    same = SimpleNamespace(cast=lambda data: data)
    made = [
        SimpleNamespace(number=i, frame_user_meta_list=List([user("other"), user("tensor")])) for i in range(frames)
    ]
    return module(
        "pyds",
        gst_buffer_get_nvds_batch_meta=lambda _: SimpleNamespace(frame_meta_list=List(made)),
        NvDsFrameMeta=same,
        NvDsUserMeta=same,
        NvDsInferTensorMeta=same,
        NvDsMetaType=SimpleNamespace(NVDSINFER_TENSOR_OUTPUT_META="tensor"),
        get_nvds_LayerInfo=lambda _, i: infos[i],
        get_ptr=ctypes.c_void_p,
    )


def test_the_probe_reads_masks(make_bundle: MakeBundle, tmp_path: Path, rng: np.random.Generator) -> None:
    bundle = make_bundle(24, 32, batch=BATCHES, outputs=("logits", "mask"))
    out = write_handoff(resolve_handoff(bundle, "deepstream"), tmp_path / "out")
    mask = rng.integers(0, 5, (24, 32), dtype=np.uint8)
    probe = load_shipped(out / "mask_probe.py", pyds_with({"logits": np.zeros((5, 6, 8)), "mask": mask}, frames=3))
    found = list(probe.masks(object()))
    assert [frame.number for frame, _ in found] == [0, 1, 2]
    assert all(np.array_equal(read, mask) for _, read in found)
    mask[:] = 9  # DeepStream's buffer is used again; what was read is not touched
    assert found[0][1].max() < 5


def test_the_probe_takes_the_argmax_of_logits(
    make_bundle: MakeBundle, tmp_path: Path, rng: np.random.Generator
) -> None:
    bundle = make_bundle(24, 32, dtype="float32", outputs=("logits",))
    out = write_handoff(resolve_handoff(bundle, "deepstream"), tmp_path / "out")
    logits = rng.normal(size=(5, 6, 8)).astype(np.float32)
    probe = load_shipped(out / "mask_probe.py", pyds_with({"logits": logits}, frames=1))
    ((_, mask),) = probe.masks(object())
    assert np.array_equal(mask, logits.argmax(0).repeat(4, 0).repeat(4, 1))
