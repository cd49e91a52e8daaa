"""Weights between the official Twins repository's key names and mmsegmentation's, which are this package's.

`models.key_names` has the table of names. Whole segmentation models have `backbone.` before the backbone's. Their neck
and heads come from mmsegmentation and keep their names. One number is not in the weights: the LayerNorms of the
official code's blocks use eps 1e-6, mmsegmentation's 1e-5.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twins_trt.errors import CheckpointError, UsageError
from twins_trt.files import whole_file
from twins_trt.models.checkpoint import Checkpoint, identify_backbone, list_misfits, read_checkpoint
from twins_trt.models.examine import AUXILIARY, CLASSIFIER, expected_tensors
from twins_trt.models.formats import BACKBONE, HEADS, recognize
from twins_trt.models.key_names import key_style, lsa_blocks, mmseg_to_official, official_to_mmseg
from twins_trt.models.widths import backbone_spec, read_spec
from twins_trt.spelling import spelled
from twins_trt.version import __version__

log = logging.getLogger("twins_trt")

DIRECTIONS = ("to_mmseg", "to_official")
FAMILIES = ("pcpvt", "svt")

AFTER_STAGES = f"{BACKBONE}norm_list."


@dataclass(frozen=True)
class ConvertedState:
    """Converted weights, their backbone, and the tensors that were dropped."""

    state_dict: dict[str, Tensor]
    family: str
    """`pcpvt` or `svt`."""
    variant: str | None
    """`s`, `b` or `l`; None for a backbone that is not in the zoo."""
    direction: str
    dropped: dict[str, str]
    """Key to reason, for every tensor that has no counterpart."""


def convert_state_dict(
    state_dict: Mapping[str, Tensor], *, family: str | None = None, direction: str | None = None
) -> ConvertedState:
    """The same weights under the other project's keys. Tensors whose rows are joined or split are new, others shared.

    state_dict: a backbone (classification weights), or a whole segmentation model with `backbone.` before its keys.
    family: `pcpvt` or `svt`. direction: `to_mmseg` or `to_official`. None detects them.
    Converting there and back keeps every bit of the tensors that are not dropped.
    Raises `UsageError` for unknown names; `CheckpointError` where the weights are no Twins backbone, contradict the
    named family or direction, or lack a tensor's counterpart (q without kv).
    """
    if family is not None and family not in FAMILIES:
        raise UsageError(
            f"{spelled('family')} must be one of {', '.join(FAMILIES)}, not {family!r}", "use pcpvt or svt"
        )
    if direction is not None and direction not in DIRECTIONS:
        raise UsageError(
            f"{spelled('direction')} must be one of {', '.join(DIRECTIONS)}, not {direction!r}", "use to_mmseg"
        )
    backbone, others = _separate(state_dict)
    source = {"official": "to_mmseg", "mmseg": "to_official"}.get(key_style(backbone) or "")
    if source is None:
        raise CheckpointError("these are no Twins weights: no blocks under official or mmsegmentation keys")
    if not any(key.startswith("patch_embeds.0.") for key in backbone):
        raise CheckpointError("these are no Twins weights: blocks, but no patch embedding")
    if direction not in (None, source):
        said = "official" if source == "to_mmseg" else "mmsegmentation's"
        raise CheckpointError(f"the weights have {said} keys, which {direction} does not start from", f"use {source}")
    actual = "svt" if lsa_blocks(backbone) else "pcpvt"
    if family not in (None, actual):
        raise CheckpointError(f"the weights are {actual}'s, not {family}'s", f"use {actual}")

    renamed, unused = (official_to_mmseg if source == "to_mmseg" else mmseg_to_official)(backbone)
    before = "" if others is None else BACKBONE
    converted = {before + key: value for key, value in renamed.items()}
    dropped = {before + key: reason for key, reason in unused.items()}
    converted.update(others or {})
    known = identify_backbone(converted)
    return ConvertedState(converted, actual, known[1] if known else None, source, dropped)


def convert_file(
    src: str | Path,
    dst: str | Path,
    *,
    family: str | None = None,
    direction: str | None = None,
    overwrite: bool = False,
) -> ConvertedState:
    """Converts a checkpoint file; `dst` appears whole or not at all.

    The file loads with `weights_only=True`. It is `{"state_dict": ..., "meta": ...}`, where meta keeps the source's
    plain entries and gains `converted_from`; an official backbone is `{"model": ..., "meta": ...}`, which that
    repository resumes from. Weights are float32.
    Raises as `read_checkpoint` and `convert_state_dict` do; `CheckpointError` also where the result is a model of the
    zoo that misses a key or shape, or cannot be written; `UsageError` where `dst` exists and `overwrite` is off.
    """
    src, dst = Path(src), Path(dst)
    if dst.exists() and not overwrite:
        raise UsageError(f"{dst} exists", f"name another file, or overwrite it: {spelled('overwrite', True)}")
    if dst.is_dir():
        raise UsageError(f"{dst} is a directory", "name the file to write in it")
    checkpoint = read_checkpoint(src)
    converted = _convert(checkpoint.state_dict, src, family=family, direction=direction)
    if converted.direction == "to_mmseg":
        _check_complete(converted, src)
    else:
        _check_complete(convert_state_dict(converted.state_dict), src)
    for key, reason in converted.dropped.items():
        log.info("%s: %s dropped (%s)", src, key, reason)
    meta = {
        **checkpoint.meta.raw,
        "converted_from": {"file": src.name, "sha256": checkpoint.sha256, "direction": converted.direction},
        "twins_trt_version": __version__,
    }
    bare = not any(key.startswith(BACKBONE) for key in converted.state_dict)
    official_backbone = converted.direction == "to_official" and bare
    _write({"model" if official_backbone else "state_dict": converted.state_dict, "meta": meta}, dst)
    return converted


def _convert(weights: Mapping[str, Tensor], src: Path, *, family: str | None, direction: str | None) -> ConvertedState:
    """The weights of a file of any origin that `recognize` knows, without what wrappers add to their names."""
    recognized = recognize(weights, src)
    state: Mapping[str, Tensor] = recognized.state_dict
    if not any(BACKBONE in key or "backbone_net." in key for key in weights):
        state = {key.removeprefix(BACKBONE): value for key, value in state.items()}
    is_foreign = recognized.origin not in ("", "mmseg")
    if is_foreign and direction == "to_official":
        raise CheckpointError(
            f"{src}: the weights have {recognized.origin} keys, which to_official does not start from", "use to_mmseg"
        )
    try:
        other = convert_state_dict(state, family=family, direction="to_official" if is_foreign else direction)
    except CheckpointError as error:
        raise CheckpointError(f"{src}: {error.cause}", error.fix) from error
    dropped = {**recognized.dropped, **other.dropped}
    if is_foreign:
        return ConvertedState(dict(state), other.family, other.variant, "to_mmseg", dropped)
    return replace(other, dropped=dropped)


def load_backbone(model: nn.Module, path: str | Path) -> Checkpoint:
    """Loads a backbone's weights into a whole model, all or nothing, for fine-tuning. Heads keep their values.

    path: classification weights of the official repository, timm or mmpretrain, mmsegmentation's converted ones, or a
    whole model's checkpoint, whose backbone is taken. Classification weights have no `norm_list`, which SVT needs: the
    model then keeps its own, and a log line says so. The model also keeps its epsilons and its padding, which
    `recognize` tells of the file's project.
    Returns the checkpoint as it was read. Raises `CheckpointError`, and leaves the model untouched, for another
    backbone.
    """
    checkpoint = read_checkpoint(path)
    weights = recognize(checkpoint.state_dict, path).state_dict
    backbone = {key.removeprefix(BACKBONE): value for key, value in weights.items() if key.startswith(BACKBONE)}
    expected = {k.removeprefix(BACKBONE): v for k, v in model.state_dict().items() if k.startswith(BACKBONE)}
    if not any(key.startswith("norm_list.") for key in backbone):
        absent = [key for key in expected if key.startswith("norm_list.")]
        if absent:
            log.info("%s has no norm_list (classification weights): the model keeps its own", path)
            expected = {key: value for key, value in expected.items() if key not in absent}
    wanted, given = identify_backbone(expected), identify_backbone(backbone)
    if given and wanted and given != wanted:
        raise CheckpointError(
            f"{path} holds the backbone {'-'.join(given)}, not {'-'.join(wanted)}",
            f"build twins_{'-'.join(given)}_fpn or twins_{'-'.join(given)}_upernet",
        )
    if misfits := list_misfits(backbone, expected):
        raise CheckpointError(f"{path} does not fit the backbone: {misfits}", "use the weights of this very backbone")
    model.load_state_dict({BACKBONE + key: value for key, value in backbone.items()}, strict=False)
    return checkpoint


def _separate(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The backbone's tensors, without `backbone.`, and the other tensors; these are None for a bare backbone."""
    if not any(key.startswith(BACKBONE) for key in state_dict):
        return dict(state_dict), None
    backbone = {k.removeprefix(BACKBONE): v for k, v in state_dict.items() if k.startswith(BACKBONE)}
    others = {key: value for key, value in state_dict.items() if not key.startswith(BACKBONE)}
    if strange := [key for key in others if not key.startswith(HEADS)]:
        raise CheckpointError(f"{strange[0]} belongs to no backbone, neck or head ({len(strange)} such keys)")
    return backbone, others


def _check_complete(converted: ConvertedState, src: Path) -> None:
    """Raises `CheckpointError` where weights under mmseg's keys lack a tensor of their model, or its shape."""
    if converted.variant is None:
        log.warning("%s: widths and depths are none of the zoo's backbones; converted by name only", src)
        return
    have = {key if key.startswith((BACKBONE, *HEADS)) else BACKBONE + key: v for key, v in converted.state_dict.items()}
    classifier = have.get(CLASSIFIER)
    if classifier is not None and classifier.ndim == 4:
        spec = read_spec(have, src)
        name, ignored = spec.name, [AUXILIARY]
        expected = expected_tensors(spec, int(classifier.shape[0]))
    else:
        backbone = backbone_spec(have, src)
        assert backbone is not None  # it has a patch embedding
        name, ignored = f"{backbone.family}-{backbone.variant}'s backbone", list(HEADS)
        expected = expected_tensors(replace(backbone, head="fpn"), 1)
        if not any(key.startswith(AFTER_STAGES) for key in have):  # classifiers have none
            ignored.append(AFTER_STAGES)
    needed = {key: value for key, value in expected.items() if not key.startswith(tuple(ignored))}
    needed = {key: value for key, value in needed.items() if not key.endswith("num_batches_tracked")}
    if misfits := list_misfits({key: value for key, value in have.items() if key in needed}, needed):
        raise CheckpointError(f"{src} does not fit {name}: {misfits}", "use a complete checkpoint")


def _write(content: dict[str, Any], dst: Path) -> None:
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(dst) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch's zip writer wraps a full disk in a RuntimeError
        raise CheckpointError(
            f"{dst} cannot be written: {error}", "check the folder's permissions and space"
        ) from error
