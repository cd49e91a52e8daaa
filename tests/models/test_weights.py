"""Which weights a model gets, and what its classes are called."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from twins_trt.data import ADE20K_CLASSES, ADE20K_PALETTE, camvid_palette  # noqa: E402
from twins_trt.errors import CheckpointError, UsageError  # noqa: E402
from twins_trt.files import sha256_of  # noqa: E402
from twins_trt.models import build_model, get_spec  # noqa: E402
from twins_trt.models.conventions import Conventions  # noqa: E402
from twins_trt.models.fetch import cached_path  # noqa: E402
from twins_trt.models.seeded import seed_weights, seeded_array  # noqa: E402
from twins_trt.models.weights import find_weights, load_weights, name_classes  # noqa: E402
from twins_trt.models.zoo import SPECS  # noqa: E402

MODEL = "twins_svt-s_fpn"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINS_TRT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def save(path: Path, classes: int, **meta: object) -> Path:
    model = build_model(MODEL, classes)
    seed_weights(model)
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return path


def test_a_checkpoint_brings_its_classes_and_their_number(tmp_path: Path) -> None:
    path = save(tmp_path / "three.pth", 3, CLASSES=["sky", "road", "car"], PALETTE=[[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    model, facts = load_weights(MODEL, checkpoint=path, padding="masked")
    assert (model.num_classes, model.padding, model.training) == (3, "masked", False)
    assert facts.classes == ("sky", "road", "car") and facts.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert (facts.source.checkpoint, facts.source.seeded) == ("three.pth", False)
    assert facts.source.sha256 == sha256_of(path)
    assert model.meta is not None and model.meta.classes == facts.classes


def test_another_models_checkpoint_is_said_to_be_one(tmp_path: Path) -> None:
    path = save(tmp_path / "three.pth", 3)
    with pytest.raises(CheckpointError, match="holds twins_svt-s_fpn with 3 classes, not twins_svt-s_upernet"):
        load_weights("twins_svt-s_upernet", checkpoint=path)


def test_seeded_weights_are_the_zoos_size_by_default() -> None:
    model, facts = load_weights(MODEL, seeded=True)
    assert facts.source.seeded and facts.source.sha256 is None
    assert model.num_classes == 150 and facts.classes == ADE20K_CLASSES and facts.palette == ADE20K_PALETTE
    key = "decode_head.conv_seg.weight"
    assert np.array_equal(model.state_dict()[key].numpy(), seeded_array(key, (150, 128, 1, 1)))


def test_fetched_weights_are_used_if_they_are_what_was_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=f"twins-trt fetch {MODEL}"):
        find_weights(MODEL)
    path = save(cached_path(MODEL), 3)
    assert find_weights(MODEL) == path
    with pytest.raises(CheckpointError, match="published weights begin with 0a0d3317"):
        load_weights(MODEL)
    spec = get_spec(MODEL)
    ours = dataclasses.replace(spec, weights=f"{spec.weights.rsplit('-', 1)[0]}-{sha256_of(path)[:8]}")
    path.rename(path.with_name(ours.weights_file))
    monkeypatch.setitem(SPECS, MODEL, ours)
    model, facts = load_weights(MODEL)
    assert model.num_classes == 3 and facts.source.checkpoint == ours.weights_file


def test_what_excludes_each_other_and_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        find_weights(MODEL, checkpoint="x.pth", seeded=True)
    with pytest.raises(CheckpointError, match=r"x\.pth does not exist"):
        find_weights(MODEL, checkpoint="x.pth")
    with pytest.raises(CheckpointError, match="is a directory"):
        find_weights(MODEL, checkpoint=tmp_path)
    with pytest.raises(UsageError, match="no model called"):
        find_weights("twins", seeded=True)


def test_names_and_colours_of_classes() -> None:
    assert name_classes(Conventions(), 150) == (ADE20K_CLASSES, ADE20K_PALETTE)
    names, colours = name_classes(Conventions(), 3)
    assert names == ("class 0", "class 1", "class 2") and len(set(colours)) == 3
    camvid = ("Sky", "road", "SignSymbol")
    assert name_classes(Conventions(classes=camvid), 3) == (camvid, camvid_palette(camvid))
    given = Conventions(classes=ADE20K_CLASSES, palette=((9, 9, 9),) * 150)
    assert name_classes(given, 150) == (ADE20K_CLASSES, given.palette)
