"""Writes recorded.json: what mmsegmentation 1.2.2 itself makes of the checkpoints of `mmseg_variants.py`.

Run in a virtual environment of its own with mmsegmentation (see CONTRIBUTING.md), from the repository's root:
    PYTHONPATH=.:benchmarks:tests/models/mmseg_cases python tests/models/mmseg_cases/make_recorded.py [CAMVID] [CASES]
CAMVID: the CamVid checkpoint, and CASES a folder of people's cases, for the values of `test_peoples_cases.py`; without
them those that are recorded stay.

Each model is built by `MODELS.build` from its configuration, gets its weights through `load_checkpoint`, and sees its
image through mmsegmentation's own data set, pipeline, preprocessor and `test_step`; `IoUMetric` scores it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg_export import allow_cpu_only_install
from mmseg_variants import (
    PALETTE,
    REFUSED,
    VARIANTS,
    WRAPPERS,
    Config,
    Variant,
    averaged,
    base_config,
    checkpoint_of,
    config_of,
    narrowed,
    old_config_of,
    seeded_state,
    write_drawn,
)

RECORDED = Path(__file__).with_name("recorded.json")
SAMPLES = 24


def packed(content: bytes) -> str:
    """Bytes as short text."""
    return base64.b64encode(zlib.compress(content, 9)).decode()


def build(config: Config) -> Any:
    """mmsegmentation's segmentor for a configuration, in eval mode."""
    from mmengine import Config as MMConfig
    from mmengine.model import revert_sync_batchnorm
    from mmseg.registry import MODELS

    return revert_sync_batchnorm(MODELS.build(MMConfig(config).model)).eval()


def load(model: Any, content: Mapping[str, Any]) -> list[str]:
    """Loads a file's content as mmsegmentation does. Returns the keys of the model that it lacks."""
    from mmengine.runner import load_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pth"
        torch.save(content, path)
        with contextlib.redirect_stdout(None):  # it prints every key that does not fit
            load_checkpoint(model, str(path), map_location="cpu", strict=False)
    loaded = content.get("state_dict", content)
    names = {str(key).removeprefix("module.") for key in loaded}  # as mmengine does
    return [key for key in model.state_dict() if key not in names]


def run(model: Any, config: Config, root: str | Path) -> list[dict[str, Any]]:
    """The masks of a folder of images, through mmsegmentation's data set and model; the score stands in the first."""
    from mmengine.dataset import pseudo_collate
    from mmseg.registry import DATASETS, METRICS

    data = DATASETS.build({**config["test_dataloader"]["dataset"], "data_root": str(root), "test_mode": True})
    metric = METRICS.build(config["test_evaluator"])
    metric.dataset_meta = data.metainfo
    scored = int(model.decode_head.num_classes) in range(2, 256)
    results: list[dict[str, Any]] = []
    for i in range(len(data)):
        batch = pseudo_collate([data[i]])
        with torch.no_grad():
            (sample,) = model.test_step(batch)
        mask, logits = sample.pred_sem_seg.data[0].numpy().astype(np.uint8), sample.seg_logits.data.numpy().ravel()
        results.append(
            {
                "name": Path(sample.img_path).stem,
                "shape": list(mask.shape),
                "mask": packed(mask.tobytes()),
                "logits": [float(f"{logits[i]:.7g}") for i in np.linspace(0, logits.size - 1, SAMPLES).astype(int)],
                "absmax": float(np.abs(logits).max()),
            }
        )
        if scored:
            metric.process(batch, [sample.to_dict()])
    if scored:
        results[0]["scores"] = {key: round(float(value), 2) for key, value in metric.evaluate(len(data)).items()}
    names = {key: list(value) if isinstance(value, tuple) else value for key, value in data.metainfo.items()}
    results[0]["dataset_meta"] = names
    return results


def run_drawn(model: Any, variant: Variant) -> dict[str, Any]:
    """What mmsegmentation makes of the variant's drawn image and labels."""
    with tempfile.TemporaryDirectory() as folder:
        write_drawn(variant, Path(folder))
        return run(model, config_of(variant), folder)[0]


def record_variant(variant: Variant, name: str, shapes: dict[str, str]) -> dict[str, Any]:
    """Everything that is recorded of a variant; its keys and shapes go to `shapes`, once for each architecture."""
    from mmengine import Config as MMConfig

    config = config_of(variant)
    model = build(config)
    own = {key: list(value.shape) for key, value in model.state_dict().items()}
    text = packed(json.dumps(own).encode())
    architecture = next((each for each, known in shapes.items() if known == text), name)
    shapes[architecture] = text
    record: dict[str, Any] = {"architecture": architecture, "config": packed(MMConfig(config).pretty_text.encode())}
    if variant.old:
        record["old_config"] = packed(MMConfig(old_config_of(variant)).pretty_text.encode())
    if name in REFUSED:
        return record
    missing = load(model, {"state_dict": seeded_state(own, variant)})
    assert not missing, missing
    return {**record, **run_drawn(model, variant)}


def record_wrappers(plain: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """What mmsegmentation makes of `plain` in each wrapper, where it loads it at all."""
    variant = VARIANTS["plain"]
    state = seeded_state(shapes, variant)
    found: dict[str, Any] = {}
    for name, wrap in WRAPPERS.items():
        model = build(config_of(variant))
        missing = load(model, wrap(checkpoint_of(state, plain, version="1.x")))
        found[name] = {"loads": not [key for key in missing if not key.endswith("num_batches_tracked")]}
        if found[name]["loads"]:
            found[name]["mask"] = run_drawn(model, variant)["mask"]
    model = build(config_of(variant))
    load(model, {"state_dict": averaged(state)})
    found["averaged"] = {"loads": True, "mask": run_drawn(model, variant)["mask"]}
    return found


def main() -> None:
    allow_cpu_only_install()
    warnings.simplefilter("ignore")
    from mmengine.registry import init_default_scope
    from mmseg.utils import register_all_modules

    register_all_modules()
    init_default_scope("mmseg")
    recorded = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    shapes: dict[str, str] = {}
    variants = {name: record_variant(variant, name, shapes) for name, variant in VARIANTS.items()}
    wrappers = record_wrappers(variants["plain"], unpacked_json(shapes["plain"]))
    cases = recorded.get("cases", {})
    if len(sys.argv) > 2:
        cases = record_cases(Path(sys.argv[1]), Path(sys.argv[2]))
    parts = {"shapes": shapes, "variants": variants, "wrappers": wrappers, "cases": cases}
    texts = []
    for part, entries in parts.items():
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items())
        texts.append(f"{json.dumps(part)}: {{\n{lines}\n}}")
    RECORDED.write_text("{" + ",\n".join(texts) + "}\n")


def record_cases(checkpoint: Path, cases: Path) -> dict[str, Any]:
    """mmsegmentation's masks and scores of people's cases: of whole models in wrappers, with labels from 1, narrow."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    state = {key: value.float() for key, value in content["state_dict"].items()}
    found = {}
    for name, (folder, weights, reduced) in {
        "ckpt_prefixes": ("exif/in/rot180_upright", state, False),
        "zero_is_void": ("zero_is_void/in", state, True),
        "zero_is_void_right": ("zero_is_void/in/right", state, False),
        "narrow_neck": ("exif/in/rot180_upright", narrowed(state), False),
    }.items():
        config = camvid_config(content["meta"]["CLASSES"], weights, reduced=reduced)
        model = build(config)
        missing = load(model, {"state_dict": weights})
        assert not missing, missing
        found[name] = {"folder": folder, "images": run(model, config, cases / folder)}
    return found


def camvid_config(classes: list[str], state: Mapping[str, torch.Tensor], *, reduced: bool) -> Config:
    """SVT-S with FPN as mmsegmentation's own configuration has it, for images in their own size."""
    import mmseg
    from mmengine import Config as MMConfig

    folder = Path(mmseg.__file__).parent / ".mim" / "configs" / "twins"
    (path,) = folder.glob("twins_svt-s_fpn_fpnhead_*.py")
    config = base_config()
    config["model"] = MMConfig.fromfile(path).model.to_dict()
    config["model"]["pretrained"] = config["model"]["backbone"]["init_cfg"] = None
    width = int(state["neck.lateral_convs.0.conv.weight"].shape[0])
    config["model"]["neck"]["out_channels"] = width
    config["model"]["decode_head"] |= {"num_classes": len(classes), "in_channels": [width] * 4}
    config["test_pipeline"][1]["reduce_zero_label"] = reduced
    config["test_dataloader"]["dataset"] |= {
        "metainfo": {"classes": list(classes), "palette": (PALETTE * 2)[: len(classes)]},
        "pipeline": config["test_pipeline"],
        "reduce_zero_label": reduced,
        "img_suffix": ".jpg",
    }
    return config


def unpacked_json(text: str) -> Any:
    """The value behind packed text."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


if __name__ == "__main__":
    main()
