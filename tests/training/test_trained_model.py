"""What a run takes from the file that it starts from, what its flags change, and what its checkpoints carry on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from PIL import Image
from toy import Options, assert_same, log_rows, stop_after, weights

from twins_trt.cli import main
from twins_trt.data import Preprocessing, open_dataset
from twins_trt.data.preprocessing import normalized_planes
from twins_trt.errors import CheckpointError, TrainingError
from twins_trt.evaluation import evaluate_model
from twins_trt.inference.modes import InferenceMode
from twins_trt.models import build_model, zoo
from twins_trt.models.convert import convert_state_dict
from twins_trt.models.examine import examine
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor
from twins_trt.training import TrainRequest, load_options, resolve_training, train
from twins_trt.training.data.batches import Batch
from twins_trt.training.run.folder import load_model
from twins_trt.training.step.trainer import on_device

BGR = {"mean": "0,0,0", "std": "255,255,255", "channels": "bgr"}
CONFIG = """
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[1.0, 2.0, 3.0], std=[50.0, 60.0, 70.0], bgr_to_rgb=False),
    decode_head=dict(num_classes=3, ignore_index=2),
    test_cfg=dict(mode='slide', crop_size=(48, 48), stride=(32, 32)))
train_pipeline = [dict(type='LoadAnnotations', reduce_zero_label=True), dict(type='RandomCrop', crop_size=(48, 64))]
"""
COLOURS = ("red", "green", "blue")


def mmseg_file(path: Path, *, classes: tuple[str, ...] = COLOURS, config: str = CONFIG, **spec: Any) -> str:
    """A checkpoint as mmengine writes it, of the toy model with seeded weights."""
    model = Segmentor(replace(zoo.get_spec(toy.TOY), **spec), len(classes))
    seed_weights(model)
    meta = {"cfg": config, "dataset_meta": {"classes": classes}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return str(path)


# --- pixels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_pixels_are_those_of_inference(channels: Any) -> None:
    normal = Preprocessing(mean=(1.0, 20.0, 300.0), std=(2.0, 30.0, 40.0), channels=channels)
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 3)).astype(np.uint8)
    batch = Batch(image, np.zeros((1, 8, 6), np.uint8), ((8, 6),))
    pixels, _ = on_device(batch, torch.device("cpu"), normal)
    assert np.array_equal(pixels[0].numpy(), normalized_planes(image[0], normal))
    assert float((pixels[0, 0] - pixels[0, 2]).abs().max()) > 1  # the order shows


# --- what is taken -------------------------------------------------------------------------------------------------


def test_the_file_decides_for_data_of_its_classes(options: Options, tmp_path: Path) -> None:
    file = mmseg_file(tmp_path / "m.pth")
    given = {"scratch": False, "checkpoint": file, "crop": None}
    job = resolve_training(options(**given))
    told = job.model.conventions
    assert (told.preprocessing.mean, told.preprocessing.std) == ((1.0, 2.0, 3.0), (50.0, 60.0, 70.0))
    assert (told.preprocessing.channels, told.padding) == ("bgr", "parity")
    assert (told.reduce_zero_label, told.ignore_index) == (True, 2)
    assert (told.test_mode.name, told.test_mode.crop, told.test_mode.stride) == ("slide", (48, 48), (32, 32))
    assert job.options.crop == (48, 48)
    assert told.fact("mean").origin == "file"  # type: ignore[union-attr]


def test_labels_of_other_classes_say_nothing(
    options: Options, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels of this data count from 0, whatever those of the file's did; pixels are still the file's."""
    file = mmseg_file(tmp_path / "m.pth", classes=("sky", "sea", "land"))
    given = {"scratch": False, "checkpoint": file, "crop": (64, 64)}
    told = resolve_training(options(**given)).model.conventions
    assert (told.reduce_zero_label, told.ignore_index, told.test_mode.name) == (False, 255, "whole")
    assert told.preprocessing.channels == "bgr" and told.classes == COLOURS
    assert "counts labels from 1 (reduce_zero_label), but has other classes" in caplog.text
    flag = {"reduce_zero_label": "true", "ignore_index": "7"}
    asked = resolve_training(options(**given, conventions=flag)).model.conventions
    assert (asked.reduce_zero_label, asked.ignore_index) == (True, 7)
    assert asked.fact("reduce_zero_label").origin == "flag"  # type: ignore[union-attr]


def test_flags_override_the_file(options: Options, tmp_path: Path) -> None:
    file = mmseg_file(tmp_path / "m.pth")
    flags = {"mean": "9,8,7", "reduce_zero_label": "false", "test_mode": "whole"}
    job = resolve_training(
        options(scratch=False, checkpoint=file, padding="masked", conventions=flags, crop=(64, 96), scale="none")
    )
    told = job.model.conventions
    assert (told.preprocessing.mean, told.preprocessing.std) == ((9.0, 8.0, 7.0), (50.0, 60.0, 70.0))
    assert (told.reduce_zero_label, told.test_mode.name, told.padding) == (False, "whole", "masked")
    assert (job.options.crop, job.options.scale, job.options.padding) == ((64, 96), None, "masked")


def test_labels_count_as_the_file_says(options: Options, tmp_path: Path) -> None:
    """The same pictures with labels from 1 and from 0 give the same losses."""
    zero, one = toy.draw(tmp_path / "zero"), toy.draw(tmp_path / "one")
    for path in (tmp_path / "one").glob("*/labels/*.png"):
        label = np.asarray(Image.open(path))
        Image.fromarray(np.where(label == 255, 0, label + 1).astype(np.uint8)).save(path)
    plain = options(data=zero, out=str(tmp_path / "a"), validate_every=2)
    reduced = options(data=one, out=str(tmp_path / "b"), validate_every=2, conventions={"reduce_zero_label": "true"})
    assert train(plain).miou == train(reduced).miou
    assert log_rows(tmp_path / "a") == log_rows(tmp_path / "b")
    assert examine(tmp_path / "b" / "last.pth").conventions.reduce_zero_label is True


def test_camvid_keeps_its_own_labels(
    options: Options, tmp_path: Path, blocks: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One past the classes is void there; a checkpoint that says otherwise is told so, and the run's say what held."""
    data = blocks.replace("folder:", "camvid:")
    job = resolve_training(options(data=data, scratch=False, checkpoint=mmseg_file(tmp_path / "m.pth")))
    told = job.model.conventions
    assert (told.reduce_zero_label, told.ignore_index, told.preprocessing.channels) == (False, 3, "bgr")
    assert "reduce_zero_label=True, and camvid:" in caplog.text


def test_validation_tests_as_the_file_says(options: Options, tmp_path: Path) -> None:
    file = mmseg_file(tmp_path / "m.pth", config=CONFIG.replace("True", "False").replace("ignore_index=2", ""))
    run = options(scratch=False, checkpoint=file, iterations=2, validate_every=2, lr=1e-9, crop=(64, 64))
    report = train(run)
    model = build_model(checkpoint=report.last)
    assert model.conventions.test_mode.name == "slide"
    data = open_dataset(str(run.data), split="val")
    mode = InferenceMode("slide", crop=(48, 48), stride=(32, 32))
    slid = evaluate_model(model, data, mode=mode, preprocessing=model.conventions.preprocessing)
    whole = evaluate_model(model, data, mode="whole", preprocessing=model.conventions.preprocessing)
    assert report.miou == pytest.approx(slid.scores.miou, abs=1e-9)
    assert report.miou != pytest.approx(whole.scores.miou, abs=1e-3)


# --- what is kept --------------------------------------------------------------------------------------------------


def test_what_was_taken_is_kept_and_resumed(options: Options, tmp_path: Path) -> None:
    """Without the file that the run started from."""
    start = tmp_path / "m.pth"
    given = {"scratch": False, "checkpoint": mmseg_file(start, fpn_channels=(24, 16)), "conventions": BGR}
    whole = options(**given, out=str(tmp_path / "whole"), validate_every=2)
    report = train(whole)
    broken = replace(whole, out=str(tmp_path / "broken"))
    with pytest.raises(KeyboardInterrupt):
        train(broken, observe=stop_after(2))
    start.unlink()
    train(TrainRequest(out=broken.out), resume=True)
    assert log_rows(broken.out) == log_rows(whole.out)
    assert_same(weights(tmp_path / "broken" / "last.pth"), weights(report.last))

    kept = load_model(str(whole.out))
    assert kept is not None and kept.spec.fpn_channels == (24, 16)
    saved = load_options(str(whole.out))
    assert (saved.conventions, saved.padding, saved.binary) == (BGR, "parity", False)
    found = examine(report.last)
    assert found.spec.fpn_channels == (24, 16)
    told = found.conventions
    assert told.preprocessing == kept.conventions.preprocessing
    assert (told.preprocessing.channels, told.preprocessing.std) == ("bgr", (255.0, 255.0, 255.0))
    assert (told.classes, told.palette, told.miou) == (COLOURS, kept.conventions.palette, report.miou)
    assert told.train_size == (64, 64)


def test_a_damaged_model_file_is_named(options: Options) -> None:
    run = options(iterations=1)
    train(run)
    (Path(str(run.out)) / "model.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"model\.json cannot be read: lacks the field 'spec'"):
        train(run, resume=True)


def test_a_backbone_of_own_widths_is_trained(options: Options, tmp_path: Path) -> None:
    file = mmseg_file(tmp_path / "m.pth", embed_dims=(16, 32, 48, 96), num_heads=(1, 2, 3, 3))
    job = resolve_training(options(model=None, scratch=False, checkpoint=file))
    assert job.options.model == "twins_svt-custom_fpn"
    assert job.model.spec.embed_dims == (16, 32, 48, 96)
    run = options(model=None, scratch=False, checkpoint=file, iterations=1, conventions={"num_heads": "1,2,3,3"})
    report = train(run)
    assert examine(report.last).spec.num_heads == (1, 2, 3, 3)
    assert train(TrainRequest(out=run.out), resume=True).iterations == 1


# --- dry runs ------------------------------------------------------------------------------------------------------


def test_a_dry_run_refuses_what_training_refuses(
    options: Options, tmp_path: Path, blocks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the words of `examine`, and nothing is written."""
    file = mmseg_file(tmp_path / "m.pth")
    content = torch.load(file, weights_only=True)
    del content["state_dict"]["neck.lateral_convs.0.conv.weight"]
    torch.save(content, file)
    with pytest.raises(CheckpointError) as refused:
        examine(file, model=toy.TOY)
    words = ["train", toy.TOY, "--data", blocks, "--checkpoint", file, "--out", str(tmp_path / "run"), "--batch", "2"]
    for more in ([], ["--dry-run"]):
        assert main([*words, *more]) == 1
        assert refused.value.cause in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_what_was_decided(tmp_path: Path, blocks: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", toy.TOY, "--data", blocks, "--checkpoint", mmseg_file(tmp_path / "m.pth"), "--dry-run"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "BGR, mean 1/2/3, std 50/60/70 (file (model.data_preprocessor.mean))" in text
    assert main([*words, "--out", str(tmp_path / "run"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["conventions"]
    assert told["preprocessing"]["channels"] == "bgr" and told["reduce_zero_label"] is True


# --- backbones pre-trained for classification ----------------------------------------------------------------------


def imagenet_file(path: Path, origin: str) -> tuple[str, Segmentor]:
    """The toy's backbone as a project publishes it for ImageNet, and the model that it is of."""
    model = Segmentor(zoo.get_spec(toy.TOY), 3)
    seed_weights(model)
    own = {k.removeprefix("backbone."): v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    own = {key: value for key, value in own.items() if not key.startswith("norm_list.")}
    ends = {"norm.weight": torch.ones(64), "norm.bias": torch.zeros(64), "head.weight": torch.zeros(1000, 64)}
    if origin == "mmpretrain":
        named = {f"backbone.{key}": value for key, value in own.items()}
        content: dict[str, Any] = {"state_dict": {**named, "head.fc.weight": ends["head.weight"]}}
    else:
        official = convert_state_dict(own, direction="to_official").state_dict
        content = {**official, **ends}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save({"model": content} if origin == "official" else content, path)
    return str(path), model


@pytest.mark.parametrize(
    ("name", "origin", "padding", "eps"),
    [
        ("pcpvt_small.pth", "official", "parity", 1e-6),
        ("pytorch_model.bin", "timm", "unmasked", 1e-6),
        ("model.safetensors", "timm", "unmasked", 1e-6),
        ("twins-svt.pth", "mmpretrain", "parity", 1e-5),
    ],
)
def test_imagenet_files_are_a_start(
    options: Options, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, origin: str, padding: str, eps: float
) -> None:
    """With the epsilons and the padding of the project, which the run's checkpoints carry on."""
    if origin == "timm" and name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    file, old = imagenet_file(tmp_path / name, origin)
    run = options(scratch=False, checkpoint=file, iterations=1, lr=1e-9)
    job = resolve_training(run)
    assert (job.start, job.model.conventions.padding, job.model.spec.block_norm_eps) == ("checkpoint", padding, eps)
    assert not Path(str(run.out)).exists()
    report = train(run)
    assert report.start.anew == ("neck and heads",)
    assert f"{file} holds a backbone only: neck and heads start at random" in caplog.text
    ours, theirs = weights(report.last), old.state_dict()
    for key in ("backbone.layers.0.0.attn.qkv.weight", "backbone.layers.0.1.attn.attn.in_proj_weight"):
        assert torch.allclose(ours[key], theirs[key], atol=1e-6), key
    found = examine(report.last)
    assert (found.conventions.padding, found.spec.block_norm_eps) == (padding, eps)
    other = options(scratch=False, checkpoint=file, padding="masked", out=str(tmp_path / "other"))
    assert resolve_training(other).model.conventions.padding == "masked"


@pytest.mark.parametrize("wrong", ["svt-s", "damaged", "nothing"])
def test_wrong_files_are_refused_before_anything_is_written(options: Options, tmp_path: Path, wrong: str) -> None:
    file, _ = imagenet_file(tmp_path / "alt_gvt.pth", "official")
    content = torch.load(file, weights_only=True)
    del content["model"]["blocks.1.0.norm1.weight"]
    damaged, nothing = tmp_path / "damaged.pth", tmp_path / "nothing.pth"
    torch.save(content, damaged)
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, nothing)
    fields, message = {
        "svt-s": ({"model": "twins_svt-s_fpn", "checkpoint": file}, "backbone twins_svt-toy, not that of twins_svt-s"),
        "damaged": ({"checkpoint": str(damaged)}, r"missing \(backbone.layers.1.0.norm1.weight"),
        "nothing": ({"checkpoint": str(nothing)}, "nothing.pth holds no Twins backbone"),
    }[wrong]
    run = options(scratch=False, **fields)
    for start in (resolve_training, train):
        with pytest.raises(CheckpointError, match=message):
            start(run)
    assert not Path(str(run.out)).exists()
