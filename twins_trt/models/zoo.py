"""The 12 Twins models that mmsegmentation published for ADE20K, and the demo's small one, as literal data.

Source of the published columns: mmsegmentation's Twins model page. `fps` and `memory_gb` are the page's own
(training memory; the GPU is not named there). Architectures: "Twins: Revisiting the Design of Spatial Attention in
Vision Transformers" (arXiv 2104.13840), tables 1 and 2, with mmsegmentation's configuration of the heads.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from numbers import Integral

from twins_trt.errors import UsageError
from twins_trt.spelling import spelled

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Per-channel mean of the network's input, RGB, on the 0-255 scale."""
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Per-channel standard deviation of the network's input, RGB, on the 0-255 scale."""
PADDINGS = ("parity", "masked", "unmasked")
"""How LSA treats keys outside the map: as mmsegmentation does, all are excluded, or all take part (as in timm)."""
MAX_CLASSES = 255
"""Of a model: masks are uint8, and 255 in a label means "ignore"."""
MIN_SIDE = 29
"""Smallest height and width of an input, pixels: stage 1 sub-samples its keys by 8, and ceil(29 / 4) is 8."""

_WEIGHTS = "https://download.openmmlab.com/mmsegmentation/v0.5/twins"


@dataclass(frozen=True)
class ModelSpec:
    """One row of the zoo: the architecture, and the published figures (NaN or empty for a model without)."""

    name: str
    family: str
    """`pcpvt` (GSA in every block) or `svt` (LSA and GSA in turn)."""
    variant: str
    """`s`, `b`, `l` or `demo`."""
    head: str
    """`fpn` (mmseg's FPN neck and FPNHead) or `upernet` (UPerHead; trained with an auxiliary FCNHead)."""
    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    mlp_ratios: tuple[int, int, int, int]
    drop_path_rate: float
    schedule_iterations: int = 0
    miou: float = math.nan
    """Published single-scale mIoU on ADE20K val, percent."""
    miou_ms_flip: float = math.nan
    """Published multi-scale and flip mIoU on ADE20K val, percent."""
    fps: float = math.nan
    memory_gb: float = math.nan
    config: str = ""
    """File name of mmsegmentation's configuration. (Its page links SVT-L UPerNet to PCPVT-L's; this is SVT-L's.)"""
    weights: str = ""
    """Folder and file of the weights below mmsegmentation's download root, without the common suffix."""
    sr_ratios: tuple[int, int, int, int] = (8, 4, 2, 1)
    window_size: int = 7
    fpn_channels: tuple[int, int] = (256, 128)
    """Width of the FPN neck and of the FPN head."""
    uper_channels: int = 512
    """Width of the UPerNet head."""
    auxiliary_channels: int = 256
    """Width of UPerNet's auxiliary head."""
    norm_eps: float = 1e-5
    """Of the LayerNorms of patch embeddings and of GSA's sub-sampled keys."""
    block_norm_eps: float = 1e-5
    """Of the LayerNorms of blocks, and of those after SVT's stages: 1e-6 in the official repository and in timm."""
    outer_norm_eps: float | None = None
    """Of the LayerNorms of patch embeddings and of those after stages, in place of the two above: mmseg's `norm_cfg`
    reaches these alone (`PCPVT.__init__` in mmseg/models/backbones/twins.py)."""
    crop_size: tuple[int, int] = (512, 512)
    num_classes: int = 150
    packaged: str = ""
    """File of the weights below the package; empty for a model that does not come with it."""

    @property
    def norm_after_stage(self) -> bool:
        """SVT ends each stage with a LayerNorm, PCPVT does not."""
        return self.family == "svt"

    @property
    def patch_norm_eps(self) -> float:
        """Of the LayerNorms of patch embeddings."""
        return self.norm_eps if self.outer_norm_eps is None else self.outer_norm_eps

    @property
    def stage_norm_eps(self) -> float:
        """Of the LayerNorms after SVT's stages."""
        return self.block_norm_eps if self.outer_norm_eps is None else self.outer_norm_eps

    @property
    def weights_file(self) -> str:
        return f"{self.weights}.pth"

    @property
    def weights_url(self) -> str:
        folder = self.weights.rsplit("_", 2)[0]  # the folder is the file's name without its date and hash
        return f"{_WEIGHTS}/{folder}/{self.weights_file}"

    @property
    def weights_sha256_prefix(self) -> str:
        """First 8 hex digits of the weights' sha256: openmmlab puts them at the end of the file's name."""
        return self.weights.rsplit("-", 1)[1]

    def has_lsa(self, block: int) -> bool:
        """Whether block `block` of a stage uses locally-grouped attention; the others are sub-sampled (GSA)."""
        return self.family == "svt" and block % 2 == 0

    @property
    def attentions(self) -> int:
        """Number of attention blocks in the backbone."""
        return sum(self.depths)


_PCPVT = {"embed_dims": (64, 128, 320, 512), "num_heads": (1, 2, 5, 8), "mlp_ratios": (8, 8, 4, 4)}
_BACKBONES: dict[str, dict] = {
    "pcpvt-s": {**_PCPVT, "depths": (3, 4, 6, 3)},
    "pcpvt-b": {**_PCPVT, "depths": (3, 4, 18, 3)},
    "pcpvt-l": {**_PCPVT, "depths": (3, 8, 27, 3)},
    "svt-s": {
        "embed_dims": (64, 128, 256, 512),
        "num_heads": (2, 4, 8, 16),
        "mlp_ratios": (4, 4, 4, 4),
        "depths": (2, 2, 10, 4),
    },
    "svt-b": {
        "embed_dims": (96, 192, 384, 768),
        "num_heads": (3, 6, 12, 24),
        "mlp_ratios": (4, 4, 4, 4),
        "depths": (2, 2, 18, 2),
    },
    "svt-l": {
        "embed_dims": (128, 256, 512, 1024),
        "num_heads": (4, 8, 16, 32),
        "mlp_ratios": (4, 4, 4, 4),
        "depths": (2, 2, 18, 2),
    },
}


def _spec(
    backbone: str,
    head: str,
    *,
    iterations: int,
    miou: float,
    ms_flip: float,
    fps: float,
    memory_gb: float,
    batch: str,
    weights: str,
    drop_path_rate: float = 0.2,
) -> ModelSpec:
    family, variant = backbone.split("-")
    mmseg_head = {"fpn": "fpnhead", "upernet": "uperhead"}[head]
    neck = "fpn_" if head == "fpn" else ""
    return ModelSpec(
        name=f"twins_{backbone}_{head}",
        family=family,
        variant=variant,
        head=head,
        **_BACKBONES[backbone],
        drop_path_rate=drop_path_rate,
        schedule_iterations=iterations,
        miou=miou,
        miou_ms_flip=ms_flip,
        fps=fps,
        memory_gb=memory_gb,
        config=f"twins_{backbone}_{neck}{mmseg_head}_{batch}-{iterations // 1000}k_ade20k-512x512.py",
        weights=weights,
    )


# fmt: off
_PUBLISHED = (
    _spec("pcpvt-s", "fpn", iterations=80_000, miou=43.26, ms_flip=44.11, fps=27.15, memory_gb=6.6, batch="8xb4",
          weights="twins_pcpvt-s_fpn_fpnhead_8x4_512x512_80k_ade20k_20211201_204132-41acd132"),
    _spec("pcpvt-s", "upernet", iterations=160_000, miou=46.04, ms_flip=46.92, fps=14.24, memory_gb=9.67, batch="8xb4",
          weights="twins_pcpvt-s_uperhead_8x4_512x512_160k_ade20k_20211201_233537-8e99c07a"),
    _spec("pcpvt-b", "fpn", iterations=80_000, miou=45.66, ms_flip=46.48, fps=19.67, memory_gb=8.41, batch="8xb4",
          weights="twins_pcpvt-b_fpn_fpnhead_8x4_512x512_80k_ade20k_20211130_141019-d396db72"),
    _spec("pcpvt-b", "upernet", iterations=160_000, miou=47.91, ms_flip=48.64, fps=12.04, memory_gb=6.46, batch="8xb2",
          weights="twins_pcpvt-b_uperhead_8x2_512x512_160k_ade20k_20211130_141020-02094ea5", drop_path_rate=0.3),
    _spec("pcpvt-l", "fpn", iterations=80_000, miou=45.94, ms_flip=46.7, fps=14.32, memory_gb=10.78, batch="8xb4",
          weights="twins_pcpvt-l_fpn_fpnhead_8x4_512x512_80k_ade20k_20211201_105226-bc6d61dc"),
    _spec("pcpvt-l", "upernet", iterations=160_000, miou=49.35, ms_flip=50.08, fps=10.7, memory_gb=7.82, batch="8xb2",
          weights="twins_pcpvt-l_uperhead_8x2_512x512_160k_ade20k_20211201_075053-c6095c07", drop_path_rate=0.3),
    _spec("svt-s", "fpn", iterations=80_000, miou=44.47, ms_flip=45.42, fps=29.79, memory_gb=5.8, batch="8xb4",
          weights="twins_svt-s_fpn_fpnhead_8x4_512x512_80k_ade20k_20211130_141006-0a0d3317"),
    _spec("svt-s", "upernet", iterations=160_000, miou=46.08, ms_flip=46.96, fps=15.09, memory_gb=4.93, batch="8xb2",
          weights="twins_svt-s_uperhead_8x2_512x512_160k_ade20k_20211130_141005-e48a2d94"),
    _spec("svt-b", "fpn", iterations=80_000, miou=46.77, ms_flip=47.47, fps=21.1, memory_gb=8.75, batch="8xb4",
          weights="twins_svt-b_fpn_fpnhead_8x4_512x512_80k_ade20k_20211201_113849-88b2907c"),
    _spec("svt-b", "upernet", iterations=160_000, miou=48.04, ms_flip=48.87, fps=12.66, memory_gb=6.77, batch="8xb2",
          weights="twins_svt-b_uperhead_8x2_512x512_160k_ade20k_20211202_040826-0943a1f1"),
    _spec("svt-l", "fpn", iterations=80_000, miou=46.55, ms_flip=47.74, fps=17.8, memory_gb=11.2, batch="8xb4",
          weights="twins_svt-l_fpn_fpnhead_8x4_512x512_80k_ade20k_20211130_141005-1d59bee2", drop_path_rate=0.3),
    _spec("svt-l", "upernet", iterations=160_000, miou=49.65, ms_flip=50.63, fps=10.73, memory_gb=8.41, batch="8xb2",
          weights="twins_svt-l_uperhead_8x2_512x512_160k_ade20k_20211130_141005-3e2cae61", drop_path_rate=0.3),
)
# fmt: on

DEMO = ModelSpec(
    name="twins_svt-demo_fpn",
    family="svt",
    variant="demo",
    head="fpn",
    embed_dims=(32, 64, 96, 128),
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 3, 4),  # 32 channels each, as in all of SVT
    mlp_ratios=(4, 4, 4, 4),
    drop_path_rate=0.05,
    schedule_iterations=1200,
    fpn_channels=(64, 64),
    crop_size=(160, 256),
    num_classes=8,
    packaged="demo/weights.pth",
)
"""The demo's model: small enough to come with the package and to be trained on a CPU. It is not published."""

SPECS = {spec.name: spec for spec in (*_PUBLISHED, DEMO)}
"""Every model by its name."""


def list_models() -> list[str]:
    """Names of the 12 published models, as `get_spec` and `build_model` take them. The demo's is not among them."""
    return [spec.name for spec in _PUBLISHED]


def known_specs() -> list[ModelSpec]:
    """Every model that a checkpoint may hold: the published ones, and the demo's."""
    return list(SPECS.values())


def is_model(name: str) -> bool:
    """Whether `get_spec` knows the name."""
    return name in SPECS


def get_spec(name: str) -> ModelSpec:
    """The row called `name`. Raises `UsageError`, with the nearest names, for any other."""
    if name in SPECS:
        return SPECS[name]
    near = difflib.get_close_matches(str(name), list_models(), n=3, cutoff=0.5) or list_models()
    raise UsageError(f"there is no model called {name!r}", f"use one of: {', '.join(near)}")


def check_padding(padding: str) -> None:
    """Raises `UsageError` unless `padding` is one of `PADDINGS`."""
    if padding not in PADDINGS:
        raise UsageError(
            f"{spelled('padding')} must be one of {', '.join(PADDINGS)}, not {padding!r}",
            f"use {spelled('padding', 'parity')}",
        )


def check_num_classes(num_classes: int) -> None:
    """Raises `UsageError` unless `num_classes` is a whole number from 1 to 255; 255 itself is "ignore" in a mask."""
    if not isinstance(num_classes, Integral) or not 1 <= num_classes <= MAX_CLASSES:
        raise UsageError(
            f"{spelled('num_classes')} must be 1 to {MAX_CLASSES} (masks are uint8), not {num_classes!r}",
            f"check {spelled('num_classes')}",
        )


def check_threshold(threshold: float, num_classes: int) -> None:
    """Raises `UsageError` unless `threshold` lies between 0 and 1, and the classes are background and foreground."""
    if not 0 < threshold < 1:
        raise UsageError(
            f"a threshold of {threshold!r} is no probability", "give a number between 0 and 1, such as 0.5"
        )
    if num_classes != 2:
        raise UsageError(
            f"a head with one logit tells 2 classes apart, background and foreground, not {num_classes}",
            spelled("num_classes", 2),
        )
