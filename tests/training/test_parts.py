"""Augmentation, sampling, schedule, loss and starting weights, each on its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from make_golden import CLASSES, described, seeded_batch
from torch import nn
from toy import Options

from twins_trt.data import Preprocessing, open_dataset
from twins_trt.errors import CheckpointError, TwinsError, UsageError
from twins_trt.models import build_model
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor
from twins_trt.training import TrainRequest, resolve_options, resolve_training, train
from twins_trt.training.data.augment import Augmentation, crop_place, distort_colours, random_size
from twins_trt.training.data.batches import BatchReader, Draws
from twins_trt.training.run.start import Start, read_start, start_weights
from twins_trt.training.step.losses import SegmentationLoss, cross_entropy
from twins_trt.training.step.schedule import learning_rate, parameter_groups
from twins_trt.training.step.trainer import checkpoint_blocks, on_device, set_regularization

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


# --- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("twins_")])
def test_loss_and_gradients_are_mmsegmentations(name: str) -> None:
    """In float64, every parameter's gradient (measured: equal to 2e-10 of its norm)."""
    model = build_model(name, CLASSES)
    seed_weights(model)
    set_regularization(model, drop_path=0.0, dropout=0.0)
    losses = SegmentationLoss(model.double().train(), aux_weight=0.4)(*seeded_batch())
    losses["loss"].backward()
    wanted = GOLDEN[name]["losses"]
    assert losses["decode"].item() == pytest.approx(wanted["decode.loss_ce"], rel=1e-9)
    accuracy = 100 * float(losses["right"]) / float(losses["labelled"])
    assert accuracy == pytest.approx(wanted["decode.acc_seg"], rel=1e-6)
    if "aux.loss_ce" in wanted:
        assert 0.4 * losses["auxiliary"].item() == pytest.approx(wanted["aux.loss_ce"], rel=1e-9)
    gradients = described({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert gradients.keys() == GOLDEN[name]["gradients"].keys()
    for key, (norm, product) in GOLDEN[name]["gradients"].items():
        assert gradients[key] == pytest.approx([norm, product], abs=1e-7 * norm + 1e-12), key


def test_ignored_pixels_count_as_zero() -> None:
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    whole = cross_entropy(logits[:, :, :2], labels[:, :2])
    labels[:, 2:] = 255
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(whole) / 2, rel=1e-6)
    labels[:] = 255
    assert float(cross_entropy(logits, labels)) == 0


def test_checkpointing_changes_no_gradient() -> None:
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    gradients = []
    for checkpointed in (False, True):
        model = build_model(toy.TOY, 3)
        seed_weights(model)
        if checkpointed:
            checkpoint_blocks(model)
        torch.manual_seed(0)
        SegmentationLoss(model.train(), aux_weight=0.4)(images, labels)["loss"].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


# --- schedule and optimizer ----------------------------------------------------------------------------------------


def test_the_schedule_is_mmengines() -> None:
    """Warm-up from 1e-6 of the rate, a polynomial to the smallest rate, each at its end value in its last iteration."""
    numbers = {"lr": 6e-5, "iterations": 160_000, "warmup": 1500, "power": 1.0, "min_lr": 0.0}
    assert learning_rate(0, **numbers) == pytest.approx(6e-11)
    assert learning_rate(1499, **numbers) == pytest.approx(6e-5)
    assert learning_rate(1500, **numbers) == pytest.approx(6e-5)
    assert learning_rate(80_749, **numbers) == pytest.approx(3e-5, rel=1e-4)
    assert learning_rate(159_999, **numbers) == 0
    constant = {"lr": 1e-4, "iterations": 80_000, "warmup": 0, "power": 0.9, "min_lr": 1e-4}  # mmseg's FPN
    assert {learning_rate(i, **constant) for i in (0, 40_000, 79_999)} == {1e-4}


def test_which_parameters_decay() -> None:
    model = build_model(toy.TOY, 3)
    names = {id(value): name for name, value in model.named_parameters()}

    def spared(decay: str, *, norms_decay: bool) -> set[str]:
        groups = parameter_groups(model, weight_decay=0.01, decay=decay, norms_decay=norms_decay)
        assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
        assert sum(len(group["params"]) for group in groups) == len(names)
        return {names[id(value)] for value in groups[1]["params"]}

    ours = spared("weights", norms_decay=True)
    assert {"backbone.layers.0.0.norm1.weight", "backbone.layers.0.1.attn.attn.in_proj_bias"} <= ours
    assert {"backbone.position_encodings.0.proj.weight", "decode_head.scale_heads.0.0.bn.weight"} <= ours
    assert "backbone.layers.0.0.attn.qkv.weight" not in ours
    assert spared("mmseg", norms_decay=True) == set()
    theirs = spared("mmseg", norms_decay=False)
    assert "backbone.layers.0.0.norm1.bias" in theirs
    assert "backbone.position_encodings.0.proj.weight" not in theirs


def test_a_request_resolves_to_mmsegs_numbers() -> None:
    fpn = resolve_options(TrainRequest("twins_svt-s_fpn", "ade20k:x", "run"))
    assert (fpn.iterations, fpn.lr, fpn.weight_decay, fpn.power, fpn.scale) == (80_000, 1e-4, 1e-4, 0.9, (2048, 512))
    upernet = resolve_options(TrainRequest("twins_svt-l_upernet", "camvid:x", "run"))
    assert (upernet.iterations, upernet.lr, upernet.weight_decay, upernet.power) == (160_000, 6e-5, 0.01, 1.0)
    assert (upernet.warmup, upernet.scale, upernet.drop_path, upernet.crop) == (1500, None, 0.3, (512, 512))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"ema": 1.0}, "ema is 1"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"amp": "fp8"}, "amp cannot be 'fp8'"),
        ({"crop": (16, 64)}, "a crop of 16x64"),
        ({"ratios": (2.0, 0.5)}, "ratios from 2"),
        ({"checkpoint": "x.pth"}, "exclude each other"),
        ({"calibration": "x.json"}, "no use without a precision plan"),
        ({"model": "twins_svt-xl_fpn"}, "no model called"),
        ({"data": "folder:nowhere"}, "no folder"),
        ({"amp": "fp16", "device": "cpu"}, "float16 trains on CUDA only"),
        ({"scratch": False, "checkpoint": "nowhere.pth"}, "does not exist"),
        ({"model": toy.TOY_UPERNET, "batch": 1}, "one picture is none"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(options: Options, fields: dict, message: str) -> None:
    with pytest.raises(TwinsError, match=message):
        resolve_training(options(**fields))


# --- pictures ------------------------------------------------------------------------------------------------------


def test_labels_follow_their_pictures() -> None:
    """A picture that shows its labels still does behind resize, crop and flip, but for the edges between two."""
    label = np.random.default_rng(0).integers(0, 3, (12, 16)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    augment = Augmentation((64, 64), None, (1.0, 2.0), 0.75, 0.5, False)
    for seed in range(6):
        image, moved = augment(toy.COLOURS[label], label, np.random.default_rng(seed))
        assert image.shape == (64, 64, 3) and moved.shape == (64, 64)
        assert (np.abs(toy.COLOURS[moved].astype(int) - image).max(axis=2) == 0).mean() > 0.7


def test_sizes_crops_and_colours_stay_in_their_range() -> None:
    rng = np.random.default_rng(0)
    sizes = [random_size((360, 480), (2048, 512), (0.5, 2.0), rng) for _ in range(200)]
    assert min(size[0] for size in sizes) < 300 and max(size[0] for size in sizes) > 950
    assert all(abs(width / height - 480 / 360) < 0.02 for height, width in sizes)

    label = np.zeros((64, 64), np.uint8)
    label[:, 48:] = 1
    for seed in range(8):  # a crop of one class, or more than 3 quarters of one, is drawn again
        top, left = crop_place(label, (32, 32), 0.75, np.random.default_rng(seed))
        assert (label[top : top + 32, left : left + 32] == 1).mean() > 0.2

    grey = np.full((4, 4, 3), (100, 110, 120), np.uint8)
    changed = [distort_colours(grey, np.random.default_rng(seed)) for seed in range(50)]
    means = [float(image.mean()) for image in changed]
    assert min(means) < 80 and max(means) > 140
    assert any(np.array_equal(image, grey) for image in changed)


def test_draws_are_a_function_of_the_iteration(blocks: str) -> None:
    items = open_dataset(blocks, split="train").items

    def numbers(draws: Draws) -> list[tuple[int, str]]:
        return [(number, item.name) for draw in draws for number, item in draw]

    whole = Draws(items, seed=1, batch=4, start=0, stop=6)
    assert len({name for _, name in numbers(whole)[:8]}) == 8  # an epoch sees every picture once
    assert numbers(whole)[8:] == numbers(Draws(items, seed=1, batch=4, start=2, stop=6))
    shares = [Draws(items, seed=1, batch=4, start=0, stop=6, rank=rank, world=2) for rank in range(2)]
    assert [list(both[0]) + list(both[1]) for both in zip(*shares, strict=True)] == [list(each) for each in whole]
    assert numbers(whole) != numbers(Draws(items, seed=2, batch=4, start=0, stop=6))


def test_small_pictures_are_padded_as_mmseg_pads(blocks: str) -> None:
    dataset = open_dataset(blocks, split="train")
    augment = Augmentation((96, 128), None, (1.0, 1.0), 1.0, 0.0, False)
    batch = BatchReader(dataset.read, augment, seed=0)([(0, dataset.items[0])])
    assert batch.sizes == ((72, 88),)
    images, labels = on_device(batch, torch.device("cpu"), Preprocessing())
    assert float(images[0, :, 72:].abs().max()) == float(images[0, :, :, 88:].abs().max()) == 0
    assert (labels[0, 72:] == 255).all() and (labels[0, :, 88:] == 255).all()
    assert float(images[0, :, :72, :88].std()) > 0.5


# --- starting weights ----------------------------------------------------------------------------------------------


def saved(path: Path, model: nn.Module, *, only: str = "") -> Path:
    torch.save({"state_dict": {k: v for k, v in model.state_dict().items() if k.startswith(only)}}, path)
    return path


def start_of(path: Path, model: str = toy.TOY) -> tuple[Segmentor, Start]:
    """A model of 3 classes with the weights that a training from `path` begins with."""
    file = read_start(path, model=model, padding=None, weights="auto", conventions={})
    built = Segmentor(file.spec, 3)
    return built, start_weights(built, file)


def test_a_classifier_of_other_classes_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = build_model(toy.TOY_UPERNET, 5)
    seed_weights(old)
    model, start = start_of(saved(tmp_path / "old.pth", old), toy.TOY_UPERNET)
    assert len(start.anew) == 2 and "the head's classifier of 5 classes is replaced" in start.anew[0]
    assert "classifier of 5 classes is replaced" in caplog.text
    ours, theirs = model.state_dict(), old.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if "conv_seg" not in key)
    assert float(ours["decode_head.conv_seg.weight"].std()) == pytest.approx(0.01, rel=0.2)
    assert float(ours["decode_head.conv_seg.bias"].abs().max()) == 0


def test_a_backbone_alone_is_a_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = build_model(toy.TOY, 5)
    seed_weights(old)
    model, start = start_of(saved(tmp_path / "old.pth", old, only="backbone."))
    assert start.anew == ("neck and heads",)
    assert "holds a backbone only: neck and heads start at random" in caplog.text
    key = "backbone.layers.0.0.attn.qkv.weight"
    assert torch.equal(model.state_dict()[key], old.state_dict()[key])
    with pytest.raises(CheckpointError, match="holds the backbone twins_svt-toy, not that of twins_svt-s_fpn"):
        start_of(tmp_path / "old.pth", "twins_svt-s_fpn")


def test_another_models_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not twins_svt-toy_fpn"):
        start_of(saved(tmp_path / "old.pth", build_model(toy.TOY_PCPVT, 3)))


# --- precision -----------------------------------------------------------------------------------------------------


def test_bfloat16_trains_beside_float32(options: Options, tmp_path: Path) -> None:
    losses = []
    for amp in ("off", "bf16"):
        report = train(options(iterations=6, batch=4, amp=amp, out=str(tmp_path / amp), val_split=""))
        losses.append(report.last_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[1] != losses[0]


def test_a_batch_that_processes_cannot_share_is_refused(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="a batch of 2 over 3 processes"):
        resolve_training(options())
