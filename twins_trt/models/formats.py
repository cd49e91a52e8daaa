"""Whose checkpoint it is, and its tensors under mmsegmentation's names.

What no tensor tells is taken from each project's source:

    project           file with it                         LayerNorm's eps of blocks   padded keys of LSA
    mmsegmentation    mmseg/models/backbones/twins.py      1e-5                        parity
    official          segmentation/gvt.py, gvt.py          1e-6                        parity (`forward_mask`)
    SSSegmentation    ssseg/modules/models/backbones/twins.py      1e-5                parity
    mmpretrain        mmpretrain/models/backbones/twins.py         1e-5, PCPVT 1e-6    parity
    timm              timm/models/twins.py                 1e-6                        unmasked

Patch embeddings and GSA's sub-sampled keys have 1e-5 everywhere, save mmpretrain's PCPVT, whose keys have 1e-6. Its
weights are timm's, trained with 1e-5, which is therefore kept. The official classifiers (`gvt.py`) never pad: they
take whole windows alone. A backbone of theirs is fine-tuned as that repository does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from twins_trt.errors import CheckpointError
from twins_trt.models.key_names import (
    UNUSED,
    key_style,
    lsa_blocks,
    mmpretrain_to_mmseg,
    model_roots,
    official_to_mmseg,
    sssegmentation_to_mmseg,
)

log = logging.getLogger("twins_trt")

BACKBONE = "backbone."
HEADS = ("neck.", "decode_head.", "auxiliary_head.")
BLOCK_NORM_EPS = 1e-6
"""Of the blocks' LayerNorms in the official repository and in timm."""

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that torch's own wrappers add, anywhere: DataParallel, compile, FSDP, activation checkpoints."""
_TIMM_FILE = re.compile(r"timm|twins_(pcpvt|svt)_(small|base|large)|pytorch_model|model\.safetensors")
_PUBLISHERS = {
    "mmseg": "open-mmlab/mmsegmentation",
    "official": "Meituan-AutoML/Twins",
    "sssegmentation": "SegmentationBLWX/sssegmentation",
    "mmpretrain": "open-mmlab/mmpretrain",
    "timm": "huggingface/pytorch-image-models",
}


@dataclass(frozen=True)
class Recognized:
    """A checkpoint's tensors under mmsegmentation's names, and what its project tells.

    state_dict: with `backbone.` before the backbone's names; names that the model does not have are left in it where
    they are mmsegmentation's. origin: `mmseg`, `official`, `sssegmentation`, `mmpretrain` or `timm`; empty for weights
    that are no Twins model's. whole: it has a decode head, not a backbone alone. dropped: reasons by the file's own
    names. spec_changes: fields of `ModelSpec` in which the project differs from mmsegmentation. padding: how its LSA
    treats padded keys, of `PADDINGS`. licence: of the weights that the project published; all are Apache-2.0.
    """

    state_dict: dict[str, Tensor]
    origin: str
    whole: bool
    dropped: dict[str, str] = field(default_factory=dict)
    spec_changes: dict[str, Any] = field(default_factory=dict)
    padding: str = "parity"
    licence: str = ""


def recognize(state_dict: Mapping[str, Tensor], path: str | Path) -> Recognized:
    """Tells whose weights these are, and renames them. path: of the file, for messages.

    Wrappers' parts of names are taken off: `module.` and `_orig_mod.` anywhere, and whatever a training framework puts
    before the whole model (`model.`, `net.`, `segmentor.`, ...).
    The official repository's ImageNet files and timm's have the same names; the file's name tells them apart, and a
    log line says so. Weights that are no Twins model's come back with an empty origin.
    Raises `CheckpointError` where the file holds several models, PVT's weights, or q without its kv.
    """
    old_names, dropped = _unwrapped_names(state_dict, path)
    named = {name: state_dict[old] for name, old in old_names.items()}
    backbone = {key.removeprefix(BACKBONE): value for key, value in named.items() if key.startswith(BACKBONE)}
    others = {key: value for key, value in named.items() if not key.startswith(BACKBONE)}
    style = key_style(backbone)
    if style is None:
        return Recognized(named, "", any(key.startswith("decode_head.") for key in named), dropped)

    def own(key: str) -> str:
        return old_names[BACKBONE + key]

    try:
        if style == "mmseg":
            unused = {key: UNUSED[top] for key in backbone if (top := key.partition(".")[0]) in UNUSED}
            renamed = {key: value for key, value in backbone.items() if key not in unused}
        else:
            renamed, unused = (official_to_mmseg if style == "official" else mmpretrain_to_mmseg)(backbone)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.cause}", error.fix) from error
    dropped |= {own(key): reason for key, reason in unused.items()}
    state = {BACKBONE + key: value for key, value in renamed.items()}
    is_sssegmentation = any(key.startswith(("ppm_net.", "lateral_convs.", "decoder.")) for key in others)
    for key, value in others.items():
        new = key if key.startswith(HEADS) else sssegmentation_to_mmseg(key) if is_sssegmentation else None
        if new is None:
            is_head = key.partition(".")[0] == "head"
            dropped[old_names[key]] = UNUSED["head"] if is_head else "no part of a Twins segmentation model"
        else:
            state[new] = value
    whole = any(key.startswith("decode_head.") for key in state)
    origin = "sssegmentation" if is_sssegmentation else style
    if origin == "official" and not whole:
        origin = _classifier_origin(path)
    family = "svt" if lsa_blocks(backbone) else "pcpvt"
    small_eps = origin in ("official", "timm") or (origin == "mmpretrain" and family == "pcpvt")
    return Recognized(
        state,
        origin,
        whole,
        dropped,
        spec_changes={"block_norm_eps": BLOCK_NORM_EPS} if small_eps else {},
        padding="unmasked" if origin == "timm" else "parity",
        licence=f"Apache-2.0, if published by {_PUBLISHERS[origin]}",
    )


def _unwrapped_names(state_dict: Mapping[str, Tensor], path: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """(the file's name of each tensor by its name without wrappers, the reasons of tensors beside the model).

    The backbone has `backbone.` before its names, even where it is the whole file.
    """
    bare = {key: ".".join(part for part in key.split(".") if part not in _WRAPPERS) for key in state_dict}
    found = model_roots(bare.values())
    if not found:
        return {key: key for key in state_dict}, {}
    if len(found) > 1:
        shown = ", ".join(sorted(f"{root}{backbone}" or "(none)" for root, backbone in found))
        raise CheckpointError(
            f"{path} holds {len(found)} Twins models, whose names begin with {shown}",
            "save the state_dict() of one of them",
        )
    root, backbone = found.pop()
    names: dict[str, str] = {}
    beside: dict[str, str] = {}
    for key, name in bare.items():
        if not name.startswith(root):
            beside[key] = f"not below {root}, where the model is"
            continue
        name = name.removeprefix(root)
        if backbone:
            name = BACKBONE + name.removeprefix(backbone) if name.startswith(backbone) else name
        elif not name.startswith(HEADS):
            name = BACKBONE + name
        if name in names:
            raise CheckpointError(
                f"{path} holds {name} twice, as {names[name]} and {key}", "save the state_dict() of one model"
            )
        names[name] = key
    return names, beside


def _classifier_origin(path: str | Path) -> str:
    origin = "timm" if Path(path).suffix == ".safetensors" or _TIMM_FILE.search(Path(path).name) else "official"
    log.info(
        "%s has the names that the official repository and timm share: read as %s's, by the file's name",
        path,
        "timm" if origin == "timm" else "the official repository",
    )
    return origin
