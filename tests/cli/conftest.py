"""One small model that is built once for all command lines: SVT-S FPN, seeded, 4 classes, 64x96."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import MODEL, SMALL, CommandResult, Twins, run_command, scene
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")


@pytest.fixture
def twins() -> Twins:
    """`twins("models", "--json")` runs one command line."""
    return run_command


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workshop")


@pytest.fixture(scope="session")
def checkpoint(workshop: Path) -> Path:
    """Seeded weights of MODEL with 4 named classes, as an mmsegmentation checkpoint in float16."""
    import torch

    from twins_trt.models import build_model
    from twins_trt.models.seeded import seed_weights

    model = build_model(MODEL, 4)
    seed_weights(model)
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    path = workshop / "four.pth"
    torch.save({"state_dict": state, "meta": {"CLASSES": ["sky", "road", "tree", "car"], "iter": 7}}, path)
    return path


@pytest.fixture(scope="session")
def built(workshop: Path, checkpoint: Path) -> CommandResult:
    """The build of `bundle`."""
    pytest.importorskip("tensorrt_rtx")
    path = workshop / "rtx.bundle"
    targets = ("--target", "89,SM120")
    ran = run_command("build", MODEL, "--checkpoint", checkpoint, *SMALL, *targets, "--out", path, "--json")
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture(scope="session")
def bundle(built: CommandResult) -> Path:
    """From `checkpoint`: FP16, 64x96, one engine for sm_89 and sm_120; a mask."""
    return Path(built.json["bundle"])


@pytest.fixture(scope="session")
def cpu_bundle(workshop: Path, checkpoint: Path) -> Path:
    """From `checkpoint`: FP32, height 64-128 by width 64-160, no engine; mask and logits."""
    path = workshop / "cpu.bundle"
    size = ("--size", "64:64:128x64:96:160", "--outputs", "mask,logits")
    ran = run_command("build", MODEL, "--checkpoint", checkpoint, *size, "--target", "cpu", "--out", path)
    assert ran.code == 0, ran.err
    return path


@pytest.fixture(scope="session")
def scenes(workshop: Path) -> Path:
    """A data set of 4 classes: three labelled pictures of 64x96 in `val`, three of other sizes in `odd`."""
    root = workshop / "scenes"
    (root / "val" / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("sky\nroad\ntree\ncar\n")
    sizes = {"val": [(64, 96)] * 3, "odd": [(80, 60), (50, 120), (64, 96)]}
    for split, shapes in sizes.items():
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for index, (height, width) in enumerate(shapes):
            Image.fromarray(scene(height, width, index)).save(root / split / "images" / f"{index}.png")
            label = np.random.default_rng(index).integers(0, 4, (height, width)).astype(np.uint8)
            label[:4] = 255
            Image.fromarray(label).save(root / split / "labels" / f"{index}.png")
    return root
