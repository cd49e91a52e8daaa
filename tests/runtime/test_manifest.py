"""Manifests come back from JSON equal, and an error names the field that does not fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_graphs import tensors, tiny_interface, tiny_manifest

from twins_trt.errors import BundleError, UsageError
from twins_trt.runtime import EngineFile, Figure, FileEntry, Manifest, Preprocessing, Source, TensorSpec, open_bundle

REBUILD = "twins-trt build twins_svt-s_fpn --checkpoint tiny.pth --num-classes 5 --out tiny.bundle"


@pytest.fixture
def manifest() -> Manifest:
    dynamic = tensors((32, 64, 96), (32, 64, 128), (1, 2, 8), ("mask", "logits"), "uint8")
    return replace(
        tiny_manifest(*dynamic),
        interface=replace(tiny_interface(*dynamic), preprocessing=Preprocessing(test_scale=(2048, 512))),
        engines=(EngineFile("engines/rtx.engine", "tensorrt_rtx", "1.7.1", ("sm_86", "sm_89")),),
        figures=(Figure("miou", 63.25, "%", "AMD EPYC", True),),
        tools={"onnx": "1.23"},
        gate="passed",
        created="2026-01-02T03:04:05+00:00",
        files=(FileEntry("engines/rtx.engine", "cd" * 32, 12), FileEntry("graph.onnx", "ef" * 32, 345)),
    )


def test_a_manifest_comes_back_from_json_equal(manifest: Manifest) -> None:
    assert Manifest.from_json(json.loads(manifest.dumps())) == manifest


def test_the_format_version_is_the_first_thing_in_the_file(manifest: Manifest) -> None:
    assert manifest.dumps().startswith('{\n  "format_version": 1,')


def test_a_bundle_of_an_earlier_version_opens_and_keeps_its_text(tmp_path: Path) -> None:
    """`earlier_manifest.json` was written when the manifest itself held the fields of the interface."""
    text = Path(__file__).with_name("earlier_manifest.json").read_text(encoding="utf-8")
    files = {"engines/rtx.engine": b"engine", "graph.onnx": b"graph", "manifest.json": text.encode()}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    bundle = open_bundle(tmp_path)
    assert bundle.manifest.dumps() == text
    assert bundle.interface.classes == ("road", "Straße") and bundle.interface.palette[1] == (244, 35, 232)
    assert str(bundle.interface.image) == "image uint8 [N=1-8, H=32-96, W=32-128, 3]"
    assert [spec.name for spec in bundle.interface.outputs] == ["mask", "logits"]
    assert bundle.interface.preprocessing.test_scale == (2048, 512)
    assert (bundle.manifest.gate, bundle.precision, bundle.engines[0].targets) == ("passed", "int8", ("sm_86", "sm_89"))


def test_dynamic_sizes_and_their_limits(manifest: Manifest) -> None:
    interface = manifest.interface
    assert interface.size is None
    assert interface.size_limits == ((32, 96), (32, 128))
    assert interface.batch_limits == (1, 8)
    assert str(interface.image) == "image uint8 [N=1-8, H=32-96, W=32-128, 3]"


def test_fixed_sizes_of_both_layouts() -> None:
    pixels = tiny_interface(*tensors(480, 360, 1, ("mask",), "uint8"))
    planes = tiny_interface(*tensors(480, 360, 1, ("mask",), "float32"))
    assert (pixels.layout, planes.layout) == ("NHWC", "NCHW")
    assert pixels.size == planes.size == (480, 360)
    assert planes.image.shape == (1, 3, 480, 360)


Change = Callable[[dict[str, Any]], None]


def put(*path: Any) -> Change:
    """`put("source", "seeded", True)` sets values["source"]["seeded"]."""

    def change(values: Any) -> None:
        for step in path[:-2]:
            values = values[step]
        values[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("num_classes", 11), r"num_classes is 11 but classes has 5 entries"),
        (put("num_classes", "5"), r"manifest\.json: num_classes is '5', not a whole number"),
        (put("num_classes", 256), r"num_classes is 256; an 8-bit mask holds 1 to 255"),
        (put("num_classes", True), r"num_classes is True, not a whole number"),
        (put("classes", None), r"classes is None, not a list"),
        (put("palette", 1, [0, 300, 0]), r"palette\[1\] is \(0, 300, 0\)"),
        (put("palette", 1, [0, 0]), r"palette\[1\] is \[0, 0\], not a list of 3"),
        (put("colour", "red"), r"field 'colour', which this version does not know"),
        (put("interface", {}), r"field 'interface', which this version does not know"),
        (put("padding", "reflect"), r"padding is 'reflect', not one of parity, masked"),
        (put("gate", "maybe"), r"gate is 'maybe', not one of ungated, passed, failed"),
        (put("source", "seeded", True), r"source\.seeded is True but source\.sha256 is abab"),
        (put("source", "sha256", None), r"source\.seeded is False but source\.sha256 is None"),
        (put("source", "sha256", "abc"), r"source\.sha256 is 'abc', not 64 hex digits"),
        (put("inputs", 0, "dtype", "int32"), r"inputs\[0\] is image int32 .*, neither uint8 \[N, H, W, 3\]"),
        (put("inputs", 0, "max", [8, 16, 128, 3]), r"image has the shape .* but the profile .*\[8, 16, 128, 3\]"),
        (put("inputs", 0, "max", None), r"image has some of min, opt and max"),
        (put("inputs", []), r"inputs has 0 entries, not 1"),
        (put("outputs", []), r"outputs is empty"),
        (put("outputs", 0, "name", "classes"), r"outputs\[0\] is classes uint8 .*, not logits float \[N, 5, h, w\]"),
        (put("outputs", 1, "shape", ["N", 11, "h", "w"]), r"outputs\[1\] is logits .* 11, .*, not logits float \[N, 5"),
        (put("preprocessing", "std", [1, 0, 1]), r"std .* must be three numbers each, std positive"),
        (put("preprocessing", "mean", [1, 2]), r"preprocessing\.mean is \[1, 2\], not a list of 3"),
        (
            put("engines", 0, "file", "engines/other.engine"),
            r"engines\[0\]\.file is engines/other\.engine, which files",
        ),
        (put("files", 1, "path", "model.onnx"), r"graph is graph\.onnx, which files does not list"),
        (put("files", 0, "path", "../rtx.engine"), r"files\[0\]\.path is '\.\./rtx\.engine'"),
        (put("files", 0, "path", "/etc/passwd"), r"files\[0\]\.path is '/etc/passwd'"),
        (put("files", 0, "path", "a\\..\\b"), r"files\[0\]\.path"),
        (put("files", 0, "path", "C:x"), r"files\[0\]\.path"),
        (put("files", 0, "path", "engines//x"), r"files\[0\]\.path"),
        (put("files", 0, "path", "manifest.json"), r"files\[0\]\.path is 'manifest\.json'"),
        (put("files", 0, "path", "graph.onnx"), r"files lists a path twice"),
        (put("files", 0, "sha256", "CD" * 32), r"files\[0\] has the sha256"),
        (put("files", 0, "size", -1), r"files\[0\] has .* the size -1"),
        (put("format_version", 0), r"format_version is 0, this twins-trt reads 1"),
        (put("format_version", "1"), r"format_version is '1', this twins-trt reads 1"),
        (put("format_version", True), r"format_version is True"),
    ],
)
def test_what_does_not_fit_is_named_with_the_command_that_rebuilds(
    manifest: Manifest, change: Change, said: str
) -> None:
    values = copy.deepcopy(manifest.to_json())
    change(values)
    with pytest.raises(BundleError, match=said) as caught:
        Manifest.from_json(values)
    assert caught.value.cause.startswith("manifest.json")
    assert caught.value.fix == REBUILD


@pytest.mark.parametrize("name", ["model", "classes", "inputs", "source", "rebuild", "opset"])
def test_a_missing_field_is_named(manifest: Manifest, name: str) -> None:
    values = manifest.to_json()
    del values[name]
    with pytest.raises(BundleError, match=f"lacks the field '{name}'"):
        Manifest.from_json(values)


def test_a_newer_format_asks_for_an_upgrade(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="format_version is 2, this twins-trt reads 1") as caught:
        Manifest.from_json({**manifest.to_json(), "format_version": 2})
    assert caught.value.fix == f"pip install --upgrade twins-trt, or rebuild: {REBUILD}"


@pytest.mark.parametrize("values", [None, [], "manifest", 1])
def test_a_manifest_is_an_object(values: object) -> None:
    with pytest.raises(BundleError, match="not an object"):
        Manifest.from_json(values)


def test_random_weights_are_said_to_be_random(manifest: Manifest) -> None:
    assert replace(manifest, source=Source(seeded=True)).to_json()["source"] == {
        "checkpoint": None,
        "sha256": None,
        "seeded": True,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", "uint8", (1,)), "needs a name"),
        (("x", "uint8", (0,)), "at least 1"),
        (("x", "uint8", ("",)), "at least 1"),
        (("x", "uint8", ("N",), (1,), (2,)), "all three or none"),
        (("x", "uint8", ("N",), (1, 1), (2, 1), (4, 1)), r"x\.min is \[1, 1\]"),
        (("x", "uint8", ("N",), (4,), (2,), (8,)), "profile"),
        (("x", "uint8", (3,), (3,), (3,), (4,)), "profile"),
    ],
)
def test_a_tensor_whose_parts_contradict_each_other_is_refused(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TensorSpec(*arguments)


def test_which_shapes_a_tensor_takes() -> None:
    spec = TensorSpec.image((32, 64, 96), 40, batch=(1, 1, 4))
    assert spec.min == (1, 32, 40, 3)
    assert spec.max == (4, 96, 40, 3)
    assert spec.fits((4, 96, 40, 3))
    for shape in ((5, 96, 40, 3), (1, 97, 40, 3), (1, 31, 40, 3), (1, 32, 41, 3), (1, 32, 40), (0, 32, 40, 3)):
        assert not spec.fits(shape)
    unlimited = TensorSpec("image", "uint8", ("N", 8, 8, 3))
    assert unlimited.fits((10**6, 8, 8, 3))
    assert str(unlimited) == "image uint8 [N>=1, 8, 8, 3]"
