"""What other projects call the tensors of a Twins model. This package's names are mmsegmentation's.

Backbones; `i` is a stage, `j` a block. Official is Meituan-AutoML/Twins (`gvt.py`), whose names timm took over:

    official, timm                        mmpretrain                       mmsegmentation, SSSegmentation
    patch_embeds.{i}.proj                 patch_embeds.{i}.projection      patch_embeds.{i}.projection
    patch_embeds.{i}.norm                 the same                         the same
    blocks.{i}.{j}.norm1, .norm2          stages.{i}.{j}.norm1, .norm2     layers.{i}.{j}.norm1, .norm2
    blocks.{i}.{j}.attn.q and .attn.kv    stages.{i}.{j}.attn.q, .kv       layers.{i}.{j}.attn.attn.in_proj_*
    blocks.{i}.{j}.attn.proj  (GSA)       stages.{i}.{j}.attn.proj         layers.{i}.{j}.attn.attn.out_proj
    blocks.{i}.{j}.attn.sr, .attn.norm    the same below stages.           the same below layers.
    blocks.{i}.{j}.attn.qkv, .proj (LSA)  the same below stages.           the same below layers.
    blocks.{i}.{j}.mlp.fc1, .fc2          .ffn.layers.0.0, .ffn.layers.1   .ffn.layers.0.0, .ffn.layers.1
    pos_block.{i}.proj.0                  position_encodings.{i}.proj      position_encodings.{i}.proj
    norm_list.{i}  (SVT, segmentation)    norm_after_stage{i}              norm_list.{i}
    norm, head  (classification)          norm_after_stage3, head.fc       none

`in_proj` holds the rows of q, then those of kv. Heads are mmsegmentation's, save SSSegmentation's UPerNet
(`ssseg/modules/models/segmentors/upernet/upernet.py`, SegmentationBLWX/sssegmentation):

    ppm_net.branches.{s}.1, .2            decode_head.psp_modules.{s}.1.conv, .bn
    ppm_net.bottleneck.0, .1              decode_head.bottleneck.conv, .bn
    lateral_convs.{i}.0, .1               decode_head.lateral_convs.{i}.conv, .bn      (fpn_convs alike)
    decoder.0, .1, .4                     decode_head.fpn_bottleneck.conv, .bn, decode_head.conv_seg
    auxiliary_decoder.0, .1, .4           auxiliary_head.convs.0.conv, .bn, auxiliary_head.conv_seg
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from twins_trt.errors import CheckpointError

UNUSED = {
    "norm": "the classifier's last LayerNorm: segmentation has none",
    "head": "the ImageNet classifier: segmentation has none",
}
"""Reasons why tensors of a classification model are dropped, by the first part of their official name."""
STRANGE = "no part of a Twins backbone"

Renamed = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors by their new names, and the reasons of those that were dropped by their old names."""
_Rules = tuple[tuple[re.Pattern[str], str], ...]

_LAYER = re.compile(r"(blocks|layers)\.(\d+)\.(\d+)\.(.+)\.(weight|bias)")
_SAME = re.compile(r"(patch_embeds\.\d+\.norm|norm_list\.\d+)\.(weight|bias)")
_TO_MMSEG: _Rules = (
    (re.compile(r"patch_embeds\.(\d+)\.proj\.(weight|bias)"), r"patch_embeds.\1.projection.\2"),
    (re.compile(r"pos_block\.(\d+)\.proj\.0\.(weight|bias)"), r"position_encodings.\1.proj.\2"),
)
_TO_OFFICIAL: _Rules = (
    (re.compile(r"patch_embeds\.(\d+)\.projection\.(weight|bias)"), r"patch_embeds.\1.proj.\2"),
    (re.compile(r"position_encodings\.(\d+)\.proj\.(weight|bias)"), r"pos_block.\1.proj.0.\2"),
)
_MMPRETRAIN_TO_OFFICIAL: _Rules = (
    *_TO_OFFICIAL,
    (re.compile(r"stages\.(\d+\.\d+)\.ffn\.layers\.0\.0\.(weight|bias)"), r"blocks.\1.mlp.fc1.\2"),
    (re.compile(r"stages\.(\d+\.\d+)\.ffn\.layers\.1\.(weight|bias)"), r"blocks.\1.mlp.fc2.\2"),
    (re.compile(r"stages\.(\d+\.\d+\..+)"), r"blocks.\1"),
)
_AFTER_STAGE = re.compile(r"norm_after_stage(\d+)\.(weight|bias)")
_CONV_BN = r"(?P<kind>weight|bias|running_mean|running_var|num_batches_tracked)"
_SSSEGMENTATION: _Rules = (
    (re.compile(rf"ppm_net\.branches\.(\d+)\.1\.{_CONV_BN}"), r"decode_head.psp_modules.\1.1.conv.\g<kind>"),
    (re.compile(rf"ppm_net\.branches\.(\d+)\.2\.{_CONV_BN}"), r"decode_head.psp_modules.\1.1.bn.\g<kind>"),
    (re.compile(rf"ppm_net\.bottleneck\.0\.{_CONV_BN}"), r"decode_head.bottleneck.conv.\g<kind>"),
    (re.compile(rf"ppm_net\.bottleneck\.1\.{_CONV_BN}"), r"decode_head.bottleneck.bn.\g<kind>"),
    (re.compile(rf"(lateral_convs|fpn_convs)\.(\d+)\.0\.{_CONV_BN}"), r"decode_head.\1.\2.conv.\g<kind>"),
    (re.compile(rf"(lateral_convs|fpn_convs)\.(\d+)\.1\.{_CONV_BN}"), r"decode_head.\1.\2.bn.\g<kind>"),
    (re.compile(rf"decoder\.0\.{_CONV_BN}"), r"decode_head.fpn_bottleneck.conv.\g<kind>"),
    (re.compile(rf"decoder\.1\.{_CONV_BN}"), r"decode_head.fpn_bottleneck.bn.\g<kind>"),
    (re.compile(rf"decoder\.4\.{_CONV_BN}"), r"decode_head.conv_seg.\g<kind>"),
    (re.compile(rf"auxiliary_decoder\.0\.{_CONV_BN}"), r"auxiliary_head.convs.0.conv.\g<kind>"),
    (re.compile(rf"auxiliary_decoder\.1\.{_CONV_BN}"), r"auxiliary_head.convs.0.bn.\g<kind>"),
    (re.compile(rf"auxiliary_decoder\.4\.{_CONV_BN}"), r"auxiliary_head.conv_seg.\g<kind>"),
)
# Names within a block; others stay. Only GSA blocks: attn.proj of an LSA block stays.
_PARTS = {"mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}
_PARTS_BACK = {mmseg: official for official, mmseg in _PARTS.items()}
_KEPT_PARTS = ("norm1", "norm2", "attn.sr", "attn.norm")


_ROOT = re.compile(r"(.*?)(backbone\.|backbone_net\.)?patch_embeds\.\d+\.")


def model_roots(names: Iterable[str]) -> set[tuple[str, str]]:
    """What stands before the names of every Twins model among these: (prefix of the model, then of its backbone).

    The second is `backbone.`, SSSegmentation's `backbone_net.`, or empty for a backbone alone.
    """
    return {(found[1], found[2] or "") for name in names if (found := _ROOT.match(name))}


def key_style(backbone: Mapping[str, Tensor]) -> str | None:
    """`official`, `mmseg` or `mmpretrain`, by what the blocks of a backbone are called; None for no or several names.

    backbone: tensors by name, without `backbone.`.
    """
    names = {found[1] for key in backbone if (found := re.match(r"(blocks|layers|stages)\.\d+\.\d+\.", key))}
    styles = {"blocks": "official", "layers": "mmseg", "stages": "mmpretrain"}
    return styles[names.pop()] if len(names) == 1 else None


def lsa_blocks(backbone: Mapping[str, Tensor]) -> set[str]:
    """`{i}.{j}` of every block with locally-grouped attention, under any project's names."""
    return {found[1] for key in backbone if (found := re.fullmatch(r"\w+\.(\d+\.\d+)\.attn\.qkv\.weight", key))}


def official_to_mmseg(backbone: Mapping[str, Tensor]) -> Renamed:
    """A backbone under mmsegmentation's names. Tensors whose rows are joined are new, others shared.

    backbone: tensors by official name, without `backbone.`. Raises `CheckpointError` for q without its kv, and for PVT.
    """
    return _rename(backbone, _one_to_mmseg)


def mmseg_to_official(backbone: Mapping[str, Tensor]) -> Renamed:
    """A backbone under the official names; the inverse of `official_to_mmseg`."""
    return _rename(backbone, _one_to_official)


def mmpretrain_to_mmseg(backbone: Mapping[str, Tensor]) -> Renamed:
    """A backbone of mmpretrain's classifiers (`mmpretrain/models/backbones/twins.py`) under mmsegmentation's names.

    Their last LayerNorm is dropped, save where each stage has one: those are SVT's `norm_list`. Raises as
    `official_to_mmseg` does.
    """
    stages = {found[1] for key in backbone if (found := _AFTER_STAGE.fullmatch(key))}
    after = r"norm_list.\1.\2" if len(stages) == 4 else r"norm.\2"
    old_names = {_replaced(key, (*_MMPRETRAIN_TO_OFFICIAL, (_AFTER_STAGE, after))) or key: key for key in backbone}
    official = {new: backbone[old] for new, old in old_names.items()}
    renamed, dropped = official_to_mmseg(official)
    return renamed, {old_names[key]: reason for key, reason in dropped.items()}


def sssegmentation_to_mmseg(key: str) -> str | None:
    """mmsegmentation's name of a tensor of SSSegmentation's UPerNet outside the backbone; None where it has none."""
    return _replaced(key, _SSSEGMENTATION)


def _replaced(key: str, rules: _Rules) -> str | None:
    for pattern, new in rules:
        if pattern.fullmatch(key):
            return pattern.sub(new, key)
    return None


def _rename(
    backbone: Mapping[str, Tensor],
    step: Callable[[str, Tensor, Mapping[str, Tensor], set[str]], dict[str, Tensor] | None],
) -> Renamed:
    if absolute := [key for key in backbone if key == "cls_token" or key.startswith("pos_embeds.")]:
        raise CheckpointError(
            f"these are PVT weights, not Twins: {absolute[0]} (absolute position embeddings)",
            "use a Twins model's checkpoint: docs/checkpoints.md lists which load",
        )
    is_lsa = lsa_blocks(backbone)
    renamed: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for key, value in backbone.items():
        if (top := key.partition(".")[0]) in UNUSED:
            dropped[key] = UNUSED[top]
            continue
        new = step(key, value, backbone, is_lsa)
        if new is None:
            dropped[key] = STRANGE
        renamed.update(new or {})
    return renamed, dropped


def _one_to_mmseg(
    key: str, value: Tensor, backbone: Mapping[str, Tensor], is_lsa: set[str]
) -> dict[str, Tensor] | None:
    """The mmseg tensors of one official tensor: none for kv, which joins q; None where it has no counterpart."""
    if _SAME.fullmatch(key):
        return {key: value}
    if new := _replaced(key, _TO_MMSEG):
        return {new: value}
    if not (found := _LAYER.fullmatch(key)):
        return None
    _, stage, block, part, kind = found.groups()
    layer = f"layers.{stage}.{block}"
    if part in _PARTS:
        return {f"{layer}.{_PARTS[part]}.{kind}": value}
    if f"{stage}.{block}" in is_lsa:
        kept = (*_KEPT_PARTS, "attn.qkv", "attn.proj")
        return {f"{layer}.{part}.{kind}": value} if part in kept else None
    if part == "attn.proj":
        return {f"{layer}.attn.attn.out_proj.{kind}": value}
    if part in ("attn.q", "attn.kv"):
        other = key.replace("attn.q.", "attn.kv.") if part == "attn.q" else key.replace("attn.kv.", "attn.q.")
        if other not in backbone:
            raise CheckpointError(
                f"{key} is there but {other} is not: the weights are incomplete", "use a complete checkpoint"
            )
        q, kv = (value, backbone[other]) if part == "attn.q" else (backbone[other], value)
        if q.ndim < 1 or kv.shape != (2 * q.shape[0], *q.shape[1:]):
            raise CheckpointError(
                f"{key} and {other} do not fit together: {tuple(value.shape)} beside q, k and v's",
                "use a complete checkpoint",
            )
        return {f"{layer}.attn.attn.in_proj_{kind}": torch.cat([q, kv])} if part == "attn.q" else {}
    return {f"{layer}.{part}.{kind}": value} if part in _KEPT_PARTS else None


def _one_to_official(
    key: str, value: Tensor, backbone: Mapping[str, Tensor], is_lsa: set[str]
) -> dict[str, Tensor] | None:
    """The official tensors of one mmseg tensor; None where it has no counterpart."""
    if _SAME.fullmatch(key):
        return {key: value}
    if new := _replaced(key, _TO_OFFICIAL):
        return {new: value}
    if found := re.fullmatch(r"layers\.(\d+\.\d+)\.attn\.attn\.in_proj_(weight|bias)", key):
        if value.ndim < 1 or value.shape[0] % 3:
            raise CheckpointError(
                f"{key} cannot be split into q, k and v: {tuple(value.shape)}", "use a complete checkpoint"
            )
        width = value.shape[0] // 3
        block = f"blocks.{found[1]}.attn"
        return {f"{block}.q.{found[2]}": value[:width].clone(), f"{block}.kv.{found[2]}": value[width:].clone()}
    if not (layer := _LAYER.fullmatch(key)):
        return None
    _, stage, block, part, kind = layer.groups()
    kept = (*_KEPT_PARTS, "attn.qkv", "attn.proj") if f"{stage}.{block}" in is_lsa else _KEPT_PARTS
    official = {**_PARTS_BACK, "attn.attn.out_proj": "attn.proj"}.get(part, part if part in kept else None)
    return None if official is None else {f"blocks.{stage}.{block}.{official}.{kind}": value}
