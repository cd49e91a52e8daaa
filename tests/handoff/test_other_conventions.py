"""Hand-offs of models that see BGR, or tell two classes apart by one logit."""

from __future__ import annotations

import configparser
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stand_ins import ORIN
from tiny_graphs import MakeBundle

from twins_trt.data.preprocessing import Preprocessing, normalized_planes
from twins_trt.errors import BundleError
from twins_trt.handoff import resolve_handoff, write_handoff
from twins_trt.runtime import Bundle, TensorSpec

BGR = Preprocessing(mean=(10.0, 120.0, 200.0), std=(50.0, 50.0, 50.0), channels="bgr")


def with_probability(bundle: Bundle, *, outputs: tuple[str, ...]) -> Bundle:
    """The bundle as of a head with one logit, which gives these outputs of 24x32 pixels."""
    specs = {
        "mask": TensorSpec.mask(24, 32),
        "logits": TensorSpec("logits", "float32", (1, 2, 6, 8)),
        "probability": TensorSpec("probability", "float32", (1, 24, 32)),
    }
    interface = replace(
        bundle.interface,
        outputs=tuple(specs[name] for name in outputs),
        classes=("background", "road"),
        palette=((0, 0, 0), (9, 9, 9)),
        threshold=0.3,
    )
    return replace(bundle, manifest=replace(bundle.manifest, interface=interface))


def test_isaac_ros_encodes_images_in_the_networks_order(
    make_bundle: MakeBundle, tmp_path: Path, rng: np.random.Generator
) -> None:
    """The encoder converts to the encoding, scales to [0, 1], subtracts the mean and divides by the deviation."""
    bundle = make_bundle(24, 32, dtype="float32", engines=(ORIN,), preprocessing=BGR)
    out = write_handoff(resolve_handoff(bundle, "isaac-ros"), tmp_path / "isaac")
    model = json.loads((out / "model.json").read_text())
    assert model["encoding"] == "bgr8"
    assert '"encoding_desired": model["encoding"]' in (out / "twins_launch.py").read_text()
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    encoded = pixels[..., ::-1]
    fed = ((encoded / 255 - np.array(model["mean"])) / np.array(model["std"])).transpose(2, 0, 1)
    assert np.abs(fed - normalized_planes(pixels, BGR)).max() < 1e-5


@pytest.mark.parametrize(("channels", "number"), [("rgb", "0"), ("bgr", "1")])
def test_nvinfer_gets_the_order_and_the_offsets_in_it(
    make_bundle: MakeBundle, tmp_path: Path, rng: np.random.Generator, channels: str, number: str
) -> None:
    told = replace(BGR, channels=channels)  # type: ignore[arg-type]
    bundle = make_bundle(24, 32, dtype="float32", outputs=("logits",), engines=(ORIN,), preprocessing=told)
    out = write_handoff(resolve_handoff(bundle, "deepstream"), tmp_path / "out")
    parser = configparser.ConfigParser()
    parser.read(out / "config_infer.txt")
    settings = dict(parser["property"])
    assert settings["model-color-format"] == number
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    ordered = pixels if number == "0" else pixels[..., ::-1]
    offsets = np.array([float(value) for value in settings["offsets"].split(";")])
    fed = float(settings["net-scale-factor"]) * (ordered - offsets).transpose(2, 0, 1)
    assert np.abs(fed - normalized_planes(pixels, told)).max() < 1e-5


def test_triton_states_the_order_of_mean_and_std(make_bundle: MakeBundle) -> None:
    handoff = resolve_handoff(make_bundle(24, 32, dtype="float32", preprocessing=BGR), "triton-server")
    config = handoff.files["twins_svt-s_fpn/config.pbtxt"]
    assert isinstance(config, bytes)
    assert 'key: "channels"' in config.decode() and 'string_value: "bgr"' in config.decode()
    assert [note for note in handoff.notes if "in BGR" in note]
    plain = resolve_handoff(make_bundle(24, 32, dtype="float32"), "triton-server")
    assert not [note for note in plain.notes if "BGR" in note]


def test_triton_serves_the_probability(make_bundle: MakeBundle) -> None:
    bundle = with_probability(make_bundle(24, 32, engines=(ORIN,)), outputs=("probability",))
    handoff = resolve_handoff(bundle, "triton-server")
    readme, config = handoff.files["README.md"], handoff.files["twins_svt-s_fpn/config.pbtxt"]
    assert isinstance(readme, bytes) and 'as_numpy("probability")' in readme.decode()
    assert isinstance(config, bytes) and "TYPE_FP32" in config.decode()
    assert "a pixel is road where its probability is above 0.3" in handoff.notes
    assert not [note for note in handoff.notes if "argmax" in note]


def test_deepstreams_probe_reads_masks_or_logits_and_no_probability(make_bundle: MakeBundle, tmp_path: Path) -> None:
    tiny = make_bundle(24, 32, batch=(1, 4, 16), engines=(ORIN,))
    both = with_probability(tiny, outputs=("probability", "logits"))
    model = resolve_handoff(both, "deepstream").files["model.json"]
    assert isinstance(model, bytes) and json.loads(model)["output"]["name"] == "logits"
    with pytest.raises(BundleError, match="gives no mask") as error:
        resolve_handoff(with_probability(tiny, outputs=("probability",)), "deepstream")
    assert error.value.fix is not None and "--outputs mask" in error.value.fix
