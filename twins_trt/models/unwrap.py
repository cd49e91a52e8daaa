"""Where a file keeps its weights: training scripts wrap them differently, and some keep averaged weights as well.

Averaged (EMA) and raw weights, as each project writes them:

- mmengine's EMAHook keeps a second copy in `ema_state_dict` (keys behind `module.`, and `steps`). When it saves, it
  swaps the two: `state_dict` then holds the averaged weights, `ema_state_dict` the raw ones (`_swap_ema_state_dict` in
  `mmengine/hooks/ema_hook.py`).
- mmcv's EMAHook keeps buffers beside the parameters: `ema_` and the parameter's name with underscores for dots. It
  swaps both at the end of an epoch (`mmcv/runner/hooks/ema.py`). Under mmsegmentation's IterBasedRunner no epoch ends:
  buffers are the averages. Under an EpochBasedRunner they are the raw weights.
- Lightning: modules beside each other in one state dict, such as `model.` and `model_ema.`.
- timm: `state_dict_ema` beside `state_dict`. SSSegmentation, Swin and others: `model_ema` beside `model`.

`auto` takes what the test script of each project loads where nobody asks for averaged weights: `state_dict` or `model`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from twins_trt.errors import CheckpointError, UsageError
from twins_trt.models.key_names import model_roots
from twins_trt.spelling import spelled

log = logging.getLogger("twins_trt")

CHOICES = ("auto", "ema", "raw")
"""Which weights are taken of a file with two sets."""

_PLAIN = ("state_dict", "model_state_dict", "model", "module", "net")
_AVERAGED = ("ema_state_dict", "state_dict_ema", "model_ema_state_dict", "model_ema", "ema_model", "ema")
_WITHIN = ("module", "shadow", *_PLAIN)
_DEPTH = 3  # of wrappers in wrappers, such as {"model": {"state_dict": ...}}


@dataclass(frozen=True)
class Unwrapped:
    """The weights of a file by its own names, and what lies beside them.

    taken: `ema` or `raw` where the file holds both, or averaged weights alone; else empty. meta: the file's `meta`.
    """

    weights: Mapping[str, Tensor]
    meta: Mapping[str, Any]
    taken: str


def unwrap(content: object, path: str | Path, *, weights: str = "auto") -> Unwrapped:
    """The weights in a file's content. weights: one of `CHOICES`; a log line says which are taken where it has both.

    Raises `UsageError` for another choice; `CheckpointError` for content without weights, and where the averaged or the
    raw weights are asked for and the file has none.
    """
    if weights not in CHOICES:
        raise UsageError(f"{spelled('weights')} must be one of {', '.join(CHOICES)}, not {weights!r}", "use ema or raw")
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not weights by name", "save model.state_dict() instead"
        )
    found = content.get("meta")
    meta = found if isinstance(found, Mapping) else {}
    sets = _find(content, meta)
    if weights == "auto":
        taken = sets.tested
    elif weights in sets.by_name:
        taken = weights
    elif weights == "ema":
        raise CheckpointError(f"{path} holds no averaged (EMA) weights", f"leave out {spelled('weights', 'ema')}")
    elif sets.averages_alone:
        raise CheckpointError(
            f"{path} holds averaged (EMA) weights alone", f"take them: {spelled('weights', 'ema')}, or leave it out"
        )
    else:
        taken = ""
    if len(sets.by_name) > 1:
        other = "raw" if taken == "ema" else "ema"
        log.warning(
            "%s holds raw and averaged (EMA) weights; takes the %s ones. For the others: %s",
            path,
            "averaged" if taken == "ema" else "raw",
            spelled("weights", other),
        )
    chosen = sets.by_name[taken] if taken in sets.by_name else next(iter(sets.by_name.values()))
    return Unwrapped(_checked(chosen, path), meta, taken)


@dataclass(frozen=True)
class _Sets:
    """Sets of weights: `ema`, `raw`, or one under the empty name. tested: the name of what test scripts load."""

    by_name: dict[str, Mapping[str, Any]]
    tested: str

    @property
    def averages_alone(self) -> bool:
        return set(self.by_name) == {"ema"}


def _find(content: Mapping[str, Any], meta: Mapping[str, Any]) -> _Sets:
    plain, averaged = _held(content, _PLAIN), _held(content, _AVERAGED)
    second = {} if averaged is None else _tensors(averaged)
    if plain is None and second:
        return _Sets({"ema": second}, "ema")
    if plain is None:
        plain = _unknown_wrapper(content) or content
    if second:
        completed = _completed(second, plain)
        if "steps" in second and isinstance(content.get("state_dict"), Mapping):  # mmengine's, which swaps them
            return _Sets({"ema": plain, "raw": completed}, "ema")
        return _Sets({"raw": plain, "ema": completed}, "raw")
    plain, second_model = _without_averaged_model(plain)
    if second_model is not None:
        return _Sets({"raw": plain, "ema": second_model}, "raw")
    plain, buffers = _without_buffers(plain)
    if buffers is None:
        return _Sets({"": plain}, "")
    if re.search(r"type\s*=\s*['\"]EpochBasedRunner['\"]", str(meta.get("config", ""))):
        return _Sets({"ema": plain, "raw": buffers}, "ema")
    return _Sets({"raw": plain, "ema": buffers}, "raw")


def _held(content: Mapping[str, Any], names: tuple[str, ...], depth: int = 1) -> Mapping[str, Any] | None:
    """The weights under the first of these names that holds some, or in a wrapper within it.

    Without weights, the first mapping: the error then tells what it holds.
    """
    mappings = [inner for name in names if isinstance(inner := content.get(name), Mapping)]
    for inner in mappings:
        if _tensors(inner):
            return inner
        within = _held(inner, _WITHIN, depth + 1) if depth < _DEPTH else None
        if within is not None and _tensors(within):
            return within
    return mappings[0] if mappings else None


def _unknown_wrapper(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one entry that holds a Twins model, under whatever name."""
    if any(isinstance(value, Tensor) for value in content.values()):
        return None
    holders = [
        value
        for value in content.values()
        if isinstance(value, Mapping) and any("patch_embeds.0." in str(key) for key in value)
    ]
    return holders[0] if len(holders) == 1 else None


def _tensors(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Without the numbers that averages keep beside their weights, such as a decay."""
    return {key: value for key, value in weights.items() if isinstance(value, Tensor)}


def _completed(averages: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The averages under the names of the raw weights, which also lend what was not averaged (buffers)."""
    by_name = {str(key).removeprefix("module."): value for key, value in averages.items()}
    names = {key: str(key).removeprefix("module.") for key in raw}
    if not set(names.values()) & set(by_name):
        return dict(averages)
    return {key: by_name.get(name, raw[key]) for key, name in names.items()}


def _without_averaged_model(weights: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
    """The weights without a second model whose name says EMA, and those of that model; None where there is none.

    So a LightningModule keeps both: `model.` beside `model_ema.` or `ema.module.`.
    """
    roots = {root for root, _ in model_roots(key for key in weights if isinstance(key, str))}
    averaged = [root for root in roots if re.search(r"(^|[._])ema([._]|$)", root)]
    if len(roots) != 2 or len(averaged) != 1:
        return weights, None
    (raw_root,) = roots - set(averaged)
    plain = {key: value for key, value in weights.items() if not str(key).startswith(averaged[0])}
    second = {raw_root + k.removeprefix(averaged[0]): v for k, v in weights.items() if str(k).startswith(averaged[0])}
    return plain, {**plain, **second}


def _without_buffers(weights: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
    """The weights without mmcv's EMA buffers, and those with the buffers in their places; None without buffers.

    A buffer of the module `owner` is called `owner.ema_NAME`: NAME is a parameter's name within the owner, with
    underscores for its dots.
    """
    names = [key for key in weights if isinstance(key, str)]
    owners = {key[: key.rindex("ema_")] for key in names if re.fullmatch(r"(.*\.)?ema_[^.]*", key)}
    buffers: dict[str, str] = {}  # by the parameter's name
    for owner in owners:
        for key in names:
            buffer = f"{owner}ema_{key.removeprefix(owner).replace('.', '_')}"
            if key.startswith(owner) and key != buffer and buffer in weights:
                buffers[key] = buffer
    if not buffers:
        return weights, None
    plain = {key: value for key, value in weights.items() if key not in buffers.values()}
    return plain, {key: weights[buffers.get(key, key)] for key in plain}


def _checked(weights: Mapping[Any, Any], path: str | Path) -> Mapping[str, Tensor]:
    """The weights. Raises `CheckpointError` unless they are tensors by name."""
    if not weights or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        odd = next((str(key) for key, value in weights.items() if not isinstance(value, Tensor)), None)
        shown = "" if odd is None else "".join(c if c.isprintable() else "?" for c in odd[:200])
        raise CheckpointError(
            f"{path} holds no state dict" + (f": {shown} is not a tensor" if odd is not None else ""),
            "save {'state_dict': model.state_dict()} instead",
        )
    return weights
