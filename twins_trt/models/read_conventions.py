"""The conventions of a checkpoint: read from what its file says, from flags, and by default, each with its origin."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from twins_trt.codec import decode, encode
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import CheckpointError, UsageError
from twins_trt.models.checkpoint import read_meta
from twins_trt.models.config_text import ParsedConfig, check_config, parse_config
from twins_trt.models.convention_flags import NAMES, Flagged, read_flags, spelled_value
from twins_trt.models.conventions import Conventions, Fact, Origin, TestMode
from twins_trt.models.mmseg_config import (
    MmsegConfig,
    Said,
    find_loading,
    find_normalization,
    find_padding,
    find_reduce_zero,
    find_test_padding,
    find_test_scale,
    find_train_size,
    plain_type,
    short_text,
)
from twins_trt.models.mmseg_model import THRESHOLD, ModelNumbers, read_model
from twins_trt.models.zoo import ModelSpec, check_threshold

log = logging.getLogger("twins_trt")

OWN = "twins_trt"
"""The key of `meta` under which our own checkpoints keep their conventions."""
CLASSIFIER = "ImageClassifier"
"""The type of mmpretrain's models, whose backbones are fine-tuned."""
_SHOWN = ("align_corners", "size_divisor", "num_classes", "pad_val", "seg_pad_val")
"""Of the configuration: shown, so that a flag that contradicts one is said; inference needs none of them."""


@dataclass(frozen=True)
class OwnNumbers:
    """Fields of a spec that no tensor tells, as our own checkpoints keep them."""

    num_heads: tuple[int, int, int, int]
    window_size: int
    norm_eps: float
    block_norm_eps: float
    outer_norm_eps: float | None
    drop_path_rate: float

    @classmethod
    def of(cls, spec: ModelSpec) -> OwnNumbers:
        """Those of an architecture."""
        return cls(**{each.name: getattr(spec, each.name) for each in fields(cls)})


def read_conventions(
    meta: Mapping[str, Any],
    *,
    origin: str,
    padding: str,
    num_logits: int,
    flags: Mapping[str, str],
    path: str | Path = "this checkpoint",
) -> tuple[Conventions, ModelNumbers]:
    """What a checkpoint says of itself, and what no tensor tells of its architecture.

    meta: of the file, as plain values. origin: whose file it is (`Source.origin`); empty for no file. padding: how that
    project treats padded keys. num_logits: of the classifier. flags: values by name in place of the file's, as text
    (`convention_flags.NAMES`). path: for errors.
    Raises `CheckpointError` for what cannot be honoured, `UsageError` for flags.
    """
    asked = read_flags(flags)
    own = meta.get(OWN)
    if isinstance(own, Mapping):
        told, numbers = _read_own(own, path)
        if num_logits and (told.threshold is None) == (num_logits == 1):
            raise CheckpointError(
                f"{path} has {num_logits} logits, which its threshold {told.threshold} contradicts",
                "use the checkpoint as its training saved it",
            )
        return _with_flags(told, numbers, asked, num_logits)
    config, parsed = _configuration(meta, path)
    if plain_type(config.mapping("model")[0]) == CLASSIFIER:  # of its tests and its head, fine-tuning takes nothing
        found, numbers = find_normalization(config), ModelNumbers()
    else:
        found, numbers = _found(config, asked, path), read_model(config, aligned=asked.get("align_corners"))
    told = _told(config, meta, found, numbers, asked=asked, padding=padding, num_logits=num_logits)
    told, numbers = _with_flags(told, numbers, asked, num_logits)
    if origin:
        _say(told, parsed, path, num_logits=num_logits)
    return told, numbers


def write_conventions(told: Conventions, spec: ModelSpec) -> dict[str, Any]:
    """Plain values for a checkpoint's `meta[OWN]`, from which `read_conventions` gives the same conventions."""
    return {"conventions": encode(told), "spec": encode(OwnNumbers.of(spec))}


def _read_own(own: Mapping[str, Any], path: str | Path) -> tuple[Conventions, ModelNumbers]:
    try:
        told = decode(Conventions, own["conventions"])
        numbers = decode(OwnNumbers, own["spec"])
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CheckpointError(
            f"{path} was written by another version of twins-trt ({error})", "pip install --upgrade twins-trt"
        ) from error
    changes = {each.name: getattr(numbers, each.name) for each in fields(numbers)}
    return told, ModelNumbers(spec_changes=changes)


def _configuration(meta: Mapping[str, Any], path: str | Path) -> tuple[MmsegConfig, ParsedConfig | None]:
    """The configuration in mmengine's `cfg` or mmcv's `config`, and how much of it was understood."""
    key = next((name for name in ("cfg", "config") if isinstance(meta.get(name), (str, dict))), None)
    if key is None:
        return MmsegConfig({}, path), None
    content = meta[key]
    parsed = check_config(content) if isinstance(content, dict) else parse_config(content)
    return MmsegConfig(parsed.values, path), parsed


def _found(config: MmsegConfig, asked: Flagged, path: str | Path) -> dict[str, Said]:
    """Values of the configuration that describe images and labels. Raises for those that cannot be honoured."""
    find_loading(config)
    padded = find_test_padding(config)
    if padded is not None and padded.value != 1 and asked.get("size_divisor") is None:
        raise config.refuse(
            padded.place, padded.value, "twins-trt does not pad images while testing", flag="size_divisor=1"
        )
    found = {**find_normalization(config), **find_test_scale(config), **find_padding(config)}
    if padded is not None:
        found["size_divisor"] = padded
    for name in ("align_corners", "num_classes"):
        if (said := config.at(f"model.decode_head.{name}")) is not None:
            found[name] = said
    if (said := find_train_size(config)) is not None:
        found["train_size"] = said
    if (said := find_reduce_zero(config)) is not None:
        found["reduce_zero_label"] = said
    if (said := config.at("model.decode_head.ignore_index")) is not None:
        found["ignore_index"] = said
    if (said := config.at("model.decode_head.threshold")) is not None:
        found["threshold"] = said
    if (said := _test_mode(config, asked)) is not None:
        found["test_mode"] = said
    return found


def _test_mode(config: MmsegConfig, asked: Flagged) -> Said | None:
    part, place = config.mapping("model.test_cfg")
    if not part.get("mode"):
        part, place = config.mapping("test_cfg")  # of old versions; mmengine's holds its loop
    mode = part.get("mode")
    if mode == "whole":
        return Said({"name": "whole"}, place)
    if mode == "slide":
        sides = {"crop": part.get("crop_size"), "stride": part.get("stride")}
        return Said({"name": "slide", **{name: _pair(side) for name, side in sides.items()}}, place)
    if mode is not None and "test_mode" in asked:
        return Said(mode, f"{place}.mode")
    if mode is not None:
        raise config.refuse(f"{place}.mode", mode, "twins-trt tests whole images or slides", flag="test_mode=whole")
    return None


def _pair(value: object) -> list[int] | None:
    """A side as [height, width]; mmseg takes one number for both."""
    return [value, value] if type(value) is int else value if isinstance(value, list) else None


def _told(
    config: MmsegConfig,
    meta: Mapping[str, Any],
    found: Mapping[str, Said],
    numbers: ModelNumbers,
    *,
    asked: Flagged,
    padding: str,
    num_logits: int,
) -> Conventions:
    """The conventions of the file alone. asked: what the caller states in place of some."""
    facts: list[Fact] = []

    def take(name: str, default: Any, *, silent: Origin) -> Any:
        """The file's value, or the default. silent: the origin of the default.

        A value that cannot be honoured is no reason to stop where the caller gives another.
        """
        said = found.get(name)
        if said is None:
            facts.append(Fact(name, spelled_value(default), silent))
            return default
        try:
            value = _checked(config, name, said)
            text = spelled_value(value)
        except CheckpointError:
            if name not in asked:
                raise
            value, text = asked[name], short_text(said.value)
        facts.append(Fact(name, text, "file", said.place))
        return value

    imagenet = Preprocessing()
    mean = take("mean", imagenet.mean, silent="assumed")
    std = take("std", imagenet.std, silent="assumed")
    channels = take("channels", imagenet.channels, silent="assumed")
    scale = take("test_scale", None, silent="default")
    keep = scale is None or take("keep_ratio", True, silent="default")
    preprocessing = Preprocessing(mean, std, test_scale=scale, keep_ratio=keep, channels=channels)
    threshold = None
    if num_logits == 1:
        threshold = take("threshold", THRESHOLD, silent="default" if config.values else "assumed")
    told = Conventions(
        preprocessing=preprocessing,
        threshold=threshold,
        reduce_zero_label=_reduces_zero(meta, found, facts),
        ignore_index=take("ignore_index", 255, silent="default"),
        test_mode=take("test_mode", TestMode(), silent="default"),
        train_size=take("train_size", None, silent="default"),
        padding=padding,
    )
    facts.append(Fact("padding", padding, "default"))
    for name in _SHOWN:
        if (said := found.get(name)) is not None and isinstance(said.value, (bool, int, float)):
            facts.append(Fact(name, spelled_value(said.value), "file", said.place))
    for name, place in numbers.places.items():
        facts.append(Fact(name, spelled_value(getattr(numbers, name)), "file", place))
    names = read_meta(dict(meta))
    score, place = _recorded(meta)
    if names.classes is not None:
        place_of_names = next((key for key in meta if key.lower() == "classes"), "dataset_meta.classes")
        facts.append(Fact("classes", ", ".join(names.classes), "file", place_of_names))
    if score is not None:
        facts.append(Fact("miou", f"{score:.2f}", "file", place))
    licence, place = _licence(meta)
    if licence:
        facts.append(Fact("licence", licence, "file", place))
    return replace(told, classes=names.classes, palette=names.palette, miou=score, licence=licence, facts=tuple(facts))


def _checked(config: MmsegConfig, name: str, said: Said) -> Any:
    """A value of the configuration as its flag would give it. Raises `CheckpointError` for one of another form."""
    value = said.value
    try:
        if isinstance(value, Mapping):
            parts = [value["name"], *(spelled_value(value[each]) for each in ("crop", "stride") if each in value)]
            text = ":".join(parts)
        elif name == "test_scale" and isinstance(value, list) and value and isinstance(value[0], list):
            text = spelled_value(value[0]) if len(value) == 1 else "several"
        else:
            one_side = name in ("train_size", "test_scale") and type(value) is int
            text = spelled_value([value, value] if one_side else value)
        return read_flags({name: text})[name]
    except UsageError as error:
        form = NAMES[name][1]
        raise config.refuse(said.place, value, f"twins-trt needs a value like {form}", flag=f"{name}={form}") from error


def _reduces_zero(meta: Mapping[str, Any], found: Mapping[str, Said], facts: list[Fact]) -> bool | None:
    said = found.get("reduce_zero_label")
    dataset = meta.get("dataset_meta")
    if isinstance(dataset, Mapping) and isinstance(dataset.get("reduce_zero_label"), bool):
        said = Said(dataset["reduce_zero_label"], "dataset_meta.reduce_zero_label")
    if said is None or not isinstance(said.value, bool):
        return None
    facts.append(Fact("reduce_zero_label", spelled_value(said.value), "file", said.place))
    return said.value


def _recorded(meta: Mapping[str, Any]) -> tuple[float | None, str]:
    """The mIoU that the file recorded, percent, and its place. mmcv's hook keeps a share of 1."""
    for key, value in meta.items():
        if key.lower() in ("miou", "val_miou") and type(value) in (int, float) and 0 <= value <= 100:
            return float(value), key
    hook = meta.get("hook_msgs")
    best = hook.get("best_score") if isinstance(hook, Mapping) else None
    if isinstance(hook, Mapping) and type(best) is float and "mIoU" in str(hook.get("best_ckpt", "mIoU")):
        if 0 <= best <= 1:
            return 100 * best, "hook_msgs.best_score"
        if best <= 100:
            return best, "hook_msgs.best_score"
    return None, ""


def _licence(meta: Mapping[str, Any]) -> tuple[str, str]:
    """The licence that the file names, and its place."""
    for key, value in meta.items():
        if key.lower() in ("license", "licence") and isinstance(value, str) and 0 < len(value) <= 200:
            return "".join(c if c.isprintable() else " " for c in value), key
    return "", ""


def _with_flags(
    told: Conventions, numbers: ModelNumbers, asked: Flagged, num_logits: int
) -> tuple[Conventions, ModelNumbers]:
    """The conventions with the caller's values; each that contradicts the file is said."""
    if "threshold" in asked and num_logits != 1:
        raise UsageError(
            f"a threshold belongs to a head with one logit, this one has {num_logits}", "leave threshold out"
        )
    of_images = {name: asked[name] for name in ("mean", "std", "channels", "test_scale", "keep_ratio") if name in asked}
    if "test_scale" in of_images and of_images["test_scale"] is None:
        of_images["keep_ratio"] = True
    of_model = {name: asked[name] for name in ("num_heads", "window_size", "norm_eps") if name in asked}
    others = ("threshold", "reduce_zero_label", "ignore_index", "test_mode", "train_size")
    facts = {fact.name: fact for fact in told.facts}
    for name, value in asked.items():
        before, text = facts.get(name), spelled_value(value)
        if before is not None and before.origin == "file" and before.value != text:
            log.warning("%s is %s, as you say, although the file says %s (%s)", name, text, before.value, before.place)
        facts[name] = Fact(name, text, "flag")
    if "norm_eps" in of_model:
        of_model |= {"block_norm_eps": of_model["norm_eps"], "outer_norm_eps": None}
    told = replace(
        told,
        preprocessing=replace(told.preprocessing, **of_images),
        **{name: asked[name] for name in others if name in asked},
        facts=tuple(facts.values()),
    )
    if told.threshold is not None:
        check_threshold(told.threshold, 2)
    return told, replace(numbers, spec_changes={**numbers.spec_changes, **of_model})


def _say(told: Conventions, parsed: ParsedConfig | None, path: str | Path, *, num_logits: int) -> None:
    """Logs what a reader of masks should know: what was assumed, and what of the configuration could not be read."""
    if parsed is not None and parsed.missing_bases:
        log.warning(
            "%s: parts of its configuration are in files that are not there: %s", path, _few(parsed.missing_bases)
        )
    rows = 2 if told.threshold is not None else num_logits
    stated = told.fact("num_classes")
    if stated is not None and stated.value not in (str(num_logits), str(rows)):
        log.warning("%s: %s is %s in its configuration, but %d in its weights", path, stated.place, stated.value, rows)
    filled = told.fact("pad_val")
    if filled is not None and filled.value != "0":
        log.info("%s was trained with padding of %s; training here pads with 0", path, filled.value)
    if parsed is not None and parsed.unread:
        log.warning("%s: parts of its configuration were not understood: %s", path, _few(parsed.unread))
    if assumed := [fact for fact in told.facts if fact.origin == "assumed"]:
        named = ", ".join(f"{fact.name} {fact.value}" for fact in assumed)
        log.warning("%s does not say how images are normalized; assumed: %s", path, named)


def _few(names: tuple[str, ...]) -> str:
    shown = ["".join(c if c.isprintable() else "?" for c in name[:100]) for name in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
