"""Writes golden_origins.json: names, shapes and outputs of other projects' own Twins models on seeded weights.

Everything is float64, so that what remains is definition and not rounding: an epsilon of 1e-5 in place of 1e-6 shows.
Runs in an environment of its own with torch, timm 1.0.20, mmpretrain 1.2.0 and mmcv-lite 2.1.0, from the top of the
repository, with checkouts of SSSegmentation and of the official repository (Meituan-AutoML/Twins):

    PYTHONPATH=.:SSSEGMENTATION python tests/models/make_origins_golden.py TWINS

The official code needs timm 0.3.2, mmcv 1 and mmsegmentation 0.x: what it takes of them is stood in for.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.models.make_golden import pixels
from tests.models.origins import digest
from twins_trt.models.seeded import seed_weights

# Padding of columns and rows in every stage; whole windows in every stage; padding of rows alone in the first two.
SIZES = ((64, 96), (224, 224), (64, 224))
VARIANTS = {"s": "small", "b": "base", "l": "large"}
BACKBONES = [f"{family}-{variant}" for family in ("pcpvt", "svt") for variant in VARIANTS]


SAMPLES = 12


def sample(values: np.ndarray) -> list[float]:
    """`SAMPLES` values spread over a tensor."""
    flat = values.ravel()
    return [float(f"{flat[i]:.11g}") for i in np.linspace(0, flat.size - 1, SAMPLES).astype(int)]


def image(size: tuple[int, int]) -> Tensor:
    """A network input, float64 [1, 3, height, width]."""
    return torch.from_numpy(pixels(*size)).double()


def described(maps: list[Tensor]) -> list[dict[str, Any]]:
    arrays = [each.numpy() for each in maps]
    return [{"shape": list(a.shape), "absmax": float(np.abs(a).max()), "samples": sample(a)} for a in arrays]


def entry(model: nn.Module, maps_of: Any, *, run: bool, sizes: tuple[tuple[int, int], ...] = SIZES) -> dict[str, Any]:
    """Digest of all names and shapes; of a model that is run, its outputs too."""
    found: dict[str, Any] = {"keys": digest({key: tuple(value.shape) for key, value in model.state_dict().items()})}
    if run:
        model.eval()
        seed_weights(model)
        model.double()
        for size in sizes:
            with torch.no_grad():
                outputs = maps_of(image(size))
            found[f"{size[0]}x{size[1]}"] = described(list(outputs))
    return found


def timm_models() -> dict[str, Any]:
    """timm's own classifiers: four maps before the last LayerNorm."""
    import timm

    found = {}
    for backbone in BACKBONES:
        family, variant = backbone.split("-")
        model = timm.create_model(f"twins_{family}_{VARIANTS[variant]}", pretrained=False)
        found[f"timm {backbone}"] = entry(
            model, lambda x, m=model: m.forward_intermediates(x, intermediates_only=True), run=variant == "s"
        )
    return found


def mmpretrain_models() -> dict[str, Any]:
    """mmpretrain's backbones as `configs/twins` build them; numbers without the norm after the last stage."""
    from mmpretrain.models.backbones.twins import PCPVT, SVT

    found = {}
    for backbone in BACKBONES:
        family, variant = backbone.split("-")
        cls, norm = (SVT, {"type": "LN"}) if family == "svt" else (PCPVT, {"type": "LN", "eps": 1e-6})
        model = cls(
            arch=VARIANTS[variant],
            out_indices=(0, 1, 2, 3),
            qkv_bias=True,
            norm_cfg=norm,
            norm_after_stage=[False, False, False, True],
        )
        whole = nn.Module()  # a classifier has the backbone and `head.fc`
        whole.backbone, whole.head = model, nn.Module()
        whole.head.fc = nn.Linear(model.embed_dims[-1], 1000)

        def maps(x: Tensor, model: Any = model) -> Any:
            model.norm_after_stage3 = nn.Identity()
            return model(x)

        found[f"mmpretrain {backbone}"] = entry(whole, maps, run=variant == "s")
    return found


def sssegmentation_models() -> dict[str, Any]:
    """SSSegmentation's whole UPerNets: logits."""
    from ssseg.modules.models.segmentors.upernet import UPerNet

    found = {}
    for backbone in BACKBONES:
        family, variant = backbone.split("-")
        module = importlib.import_module(f"ssseg.configs.twins.upernet_{family}{VARIANTS[variant]}_ade20k")
        config = copy.deepcopy(module.SEGMENTOR_CFG)
        config["backbone"]["pretrained"] = False
        config["norm_cfg"] = {"type": "BatchNorm2d"}  # computes what SyncBatchNorm does, and runs on a CPU
        model = UPerNet(config, mode="TEST")

        def logits(x: Tensor, model: Any = model) -> list[Tensor]:
            return [model(types.SimpleNamespace(images=x)).seg_logits]

        found[f"sssegmentation {backbone}"] = entry(model, logits, run=variant == "s", sizes=SIZES[:1])
    return found


def official_models(checkout: Path) -> dict[str, Any]:
    """The official backbones for segmentation (four maps) and the official classifiers (names alone)."""
    _stand_in_for_old_packages()
    found = {}
    for file, purpose in (("segmentation/gvt.py", "segmentation"), ("gvt.py", "classifier")):
        spec = importlib.util.spec_from_file_location(f"official_{purpose}", checkout / file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for backbone in BACKBONES:
            family, variant = backbone.split("-")
            stem = "alt_gvt" if family == "svt" else "pcpvt"
            name = f"{stem}_{VARIANTS[variant]}"
            model = (getattr(module, name, None) or getattr(module, f"{name}_v0"))()
            run = variant == "s" and purpose == "segmentation"
            found[f"official {purpose} {backbone}"] = entry(model, model, run=run)
    return found


def _stand_in_for_old_packages() -> None:
    """Registries and base classes that the official files import, with what those files use of them."""
    import timm.models.vision_transformer as current
    from timm.layers import Mlp

    class Registry:
        def register_module(self) -> Any:
            return lambda cls: cls

    class Block(nn.Module):
        """timm 0.3.2's block: the official blocks replace its attention."""

        def __init__(
            self,
            dim: int,
            num_heads: int,
            mlp_ratio: float,
            qkv_bias: bool,
            qk_scale: float | None,
            drop: float,
            attn_drop: float,
            drop_path: float,
            act_layer: Any,
            norm_layer: Any,
        ) -> None:
            super().__init__()
            self.norm1, self.norm2 = norm_layer(dim), norm_layer(dim)
            self.attn = nn.Identity()
            self.drop_path = nn.Identity()
            self.mlp = Mlp(in_features=dim, hidden_features=int(dim * mlp_ratio), act_layer=act_layer, drop=drop)

    current.Block = Block
    current._cfg = dict
    contents: dict[str, dict[str, Any]] = {
        "timm.models.registry": {"register_model": lambda function: function},
        "mmseg": {},
        "mmseg.models": {},
        "mmseg.models.builder": {"BACKBONES": Registry()},
        "mmseg.utils": {"get_root_logger": lambda: None},
        "mmcv.runner": {"load_checkpoint": None},
    }
    for name, values in contents.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(values)


def main() -> None:
    import mmpretrain
    import ssseg
    import timm

    versions = {"timm": timm.__version__, "mmpretrain": mmpretrain.__version__, "sssegmentation": ssseg.__version__}
    golden: dict[str, Any] = {"versions": versions}
    golden |= timm_models() | mmpretrain_models() | sssegmentation_models() | official_models(Path(sys.argv[1]))
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    Path(__file__).with_name("golden_origins.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
