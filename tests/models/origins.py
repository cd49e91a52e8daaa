"""What each project calls its Twins tensors, and their shapes: written down from its source, one function a file.

`golden_origins.json` holds a digest of the real lists, which `make_origins_golden.py` takes from the projects' own
models: a list here that is not the project's fails `test_formats_origins.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from twins_trt.models import ModelSpec

Shapes = dict[str, tuple[int, ...]]


class Lister:
    """Writes layers into a list of shapes."""

    def __init__(self) -> None:
        self.shapes: Shapes = {}

    def linear(self, name: str, rows: int, columns: int) -> None:
        self.shapes[f"{name}.weight"], self.shapes[f"{name}.bias"] = (rows, columns), (rows,)

    def norm(self, name: str, width: int) -> None:
        self.shapes[f"{name}.weight"] = self.shapes[f"{name}.bias"] = (width,)

    def conv(self, name: str, rows: int, columns: int, kernel: int, *, bias: bool = True) -> None:
        self.shapes[f"{name}.weight"] = (rows, columns, kernel, kernel)
        if bias:
            self.shapes[f"{name}.bias"] = (rows,)

    def batch_norm(self, name: str, width: int) -> None:
        self.norm(name, width)
        self.shapes[f"{name}.running_mean"] = self.shapes[f"{name}.running_var"] = (width,)
        self.shapes[f"{name}.num_batches_tracked"] = ()


def has_lsa(spec: ModelSpec, block: int) -> bool:
    return spec.family == "svt" and block % 2 == 0


def list_block(to: Lister, spec: ModelSpec, i: int, j: int, *, prefix: str, ffn: tuple[str, str]) -> None:
    """Block `j` of stage `i`, with the names of its parts as the official code and mmpretrain have them. ffn: those of
    the two products."""
    width = spec.embed_dims[i]
    to.norm(f"{prefix}.norm1", width)
    if has_lsa(spec, j):
        to.linear(f"{prefix}.attn.qkv", 3 * width, width)
    else:
        to.linear(f"{prefix}.attn.q", width, width)
        to.linear(f"{prefix}.attn.kv", 2 * width, width)
        if spec.sr_ratios[i] > 1:
            to.conv(f"{prefix}.attn.sr", width, width, spec.sr_ratios[i])
            to.norm(f"{prefix}.attn.norm", width)
    to.linear(f"{prefix}.attn.proj", width, width)
    to.norm(f"{prefix}.norm2", width)
    to.linear(f"{prefix}.{ffn[0]}", width * spec.mlp_ratios[i], width)
    to.linear(f"{prefix}.{ffn[1]}", width, width * spec.mlp_ratios[i])


def official_shapes(spec: ModelSpec, *, classifier: bool, norm_list: bool) -> Shapes:
    """Meituan-AutoML/Twins: `gvt.py` (classifier) and `segmentation/gvt.py` (both; SVT with norm_list). timm: the
    first."""
    to = Lister()
    for i, width in enumerate(spec.embed_dims):
        to.conv(f"patch_embeds.{i}.proj", width, spec.embed_dims[i - 1] if i else 3, 2 if i else 4)
        to.norm(f"patch_embeds.{i}.norm", width)
        for j in range(spec.depths[i]):
            list_block(to, spec, i, j, prefix=f"blocks.{i}.{j}", ffn=("mlp.fc1", "mlp.fc2"))
        to.conv(f"pos_block.{i}.proj.0", width, 1, 3)
        if norm_list:
            to.norm(f"norm_list.{i}", width)
    if classifier:
        to.norm("norm", spec.embed_dims[-1])
        to.linear("head", 1000, spec.embed_dims[-1])
    return to.shapes


def mmpretrain_shapes(spec: ModelSpec) -> Shapes:
    """open-mmlab/mmpretrain: `mmpretrain/models/backbones/twins.py` as `configs/twins` build it, a norm after the last
    stage alone. The classifier's `head.fc` stands beside the backbone."""
    to = Lister()
    for i, width in enumerate(spec.embed_dims):
        to.conv(f"backbone.patch_embeds.{i}.projection", width, spec.embed_dims[i - 1] if i else 3, 2 if i else 4)
        to.norm(f"backbone.patch_embeds.{i}.norm", width)
        to.conv(f"backbone.position_encodings.{i}.proj", width, 1, 3)
        for j in range(spec.depths[i]):
            list_block(to, spec, i, j, prefix=f"backbone.stages.{i}.{j}", ffn=("ffn.layers.0.0", "ffn.layers.1"))
    to.norm("backbone.norm_after_stage3", spec.embed_dims[-1])
    to.linear("head.fc", 1000, spec.embed_dims[-1])
    return to.shapes


def sssegmentation_shapes(spec: ModelSpec, *, num_classes: int = 150) -> Shapes:
    """SegmentationBLWX/sssegmentation: `backbones/twins.py`, `segmentors/upernet/upernet.py` and `configs/twins`."""
    to = Lister()
    for i, width in enumerate(spec.embed_dims):
        to.conv(f"backbone_net.patch_embeds.{i}.projection", width, spec.embed_dims[i - 1] if i else 3, 2 if i else 4)
        to.norm(f"backbone_net.patch_embeds.{i}.norm", width)
        to.conv(f"backbone_net.position_encodings.{i}.proj", width, 1, 3)
        for j in range(spec.depths[i]):
            block = f"backbone_net.layers.{i}.{j}"
            to.norm(f"{block}.norm1", width)
            if has_lsa(spec, j):
                to.linear(f"{block}.attn.qkv", 3 * width, width)
                to.linear(f"{block}.attn.proj", width, width)
            else:
                to.shapes[f"{block}.attn.attn.in_proj_weight"] = (3 * width, width)
                to.shapes[f"{block}.attn.attn.in_proj_bias"] = (3 * width,)
                to.linear(f"{block}.attn.attn.out_proj", width, width)
                if spec.sr_ratios[i] > 1:
                    to.conv(f"{block}.attn.sr", width, width, spec.sr_ratios[i])
                    to.norm(f"{block}.attn.norm", width)
            to.norm(f"{block}.norm2", width)
            to.linear(f"{block}.ffn.layers.0.0", width * spec.mlp_ratios[i], width)
            to.linear(f"{block}.ffn.layers.1", width, width * spec.mlp_ratios[i])
        if spec.family == "svt":
            to.norm(f"backbone_net.norm_list.{i}", width)

    head = sssegmentation_width(spec)
    for scale in range(4):
        to.conv(f"ppm_net.branches.{scale}.1", head, spec.embed_dims[3], 1, bias=False)
        to.batch_norm(f"ppm_net.branches.{scale}.2", head)
    to.conv("ppm_net.bottleneck.0", head, spec.embed_dims[3] + 4 * head, 3, bias=False)
    to.batch_norm("ppm_net.bottleneck.1", head)
    for i, width in enumerate(spec.embed_dims[:3]):
        to.conv(f"lateral_convs.{i}.0", head, width, 1, bias=False)
        to.batch_norm(f"lateral_convs.{i}.1", head)
        to.conv(f"fpn_convs.{i}.0", head, head, 3, bias=False)
        to.batch_norm(f"fpn_convs.{i}.1", head)
    to.conv("decoder.0", head, 4 * head, 3, bias=False)
    to.batch_norm("decoder.1", head)
    to.conv("decoder.4", num_classes, head, 1)
    to.conv("auxiliary_decoder.0", 512, spec.embed_dims[2], 3, bias=False)
    to.batch_norm("auxiliary_decoder.1", 512)
    to.conv("auxiliary_decoder.4", num_classes, 512, 1)
    return to.shapes


def sssegmentation_width(spec: ModelSpec) -> int:
    """`feats_channels` in `configs/twins`: PCPVT-S alone has a wider head."""
    return 1024 if (spec.family, spec.variant) == ("pcpvt", "s") else 512


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """16 hex digits of all names and shapes, whatever their order."""
    lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
