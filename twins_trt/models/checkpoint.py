"""Checkpoints in mmsegmentation's format: reads them without running code, tells their model, loads all or nothing."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twins_trt.errors import CheckpointError, MissingDependencyError, first_line
from twins_trt.files import sha256_of
from twins_trt.models.stand_ins import plain, stand_ins_allowed
from twins_trt.models.unwrap import unwrap
from twins_trt.models.zoo import known_specs

log = logging.getLogger("twins_trt")

_SHOWN = 3  # keys that an error names; others are counted
_AGAIN = "download it again: twins-trt fetch MODEL"


@dataclass(frozen=True)
class CheckpointMeta:
    """The facts that a checkpoint carries."""

    classes: tuple[str, ...] | None = None
    """Class names in label order."""
    palette: tuple[tuple[int, int, int], ...] | None = None
    """RGB colour of each class, 0-255."""
    raw: dict[str, Any] = field(default_factory=dict)
    """Everything plain in the checkpoint's `meta`, as JSON types."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CheckpointMeta:
        data = json.loads(text)
        palette = data["palette"]
        return cls(
            classes=None if data["classes"] is None else tuple(data["classes"]),
            palette=None if palette is None else tuple((int(r), int(g), int(b)) for r, g, b in palette),
            raw=data["raw"],
        )


@dataclass(frozen=True)
class FileContent:
    """What a file holds.

    weights: its tensors by the file's own names, float32 and int64, on the CPU; they may hold NaN. meta: everything
    plain beside them, as JSON types. sha256: of the file. taken: `ema` or `raw` where the file holds both; else empty.
    """

    weights: dict[str, Tensor]
    meta: dict[str, Any]
    sha256: str
    taken: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's weights, float32 (counters int64) on the CPU, its meta, and the sha256 of its file."""

    state_dict: dict[str, Tensor]
    meta: CheckpointMeta
    sha256: str


def read_file(path: str | Path, *, weights: str = "auto") -> FileContent:
    """Reads a `.pth` (or, where safetensors is installed, a `.safetensors`) file without running any code in it.

    weights: `ema` or `raw` where the file holds both, or `auto`, as `unwrap` takes it.
    Raises `CheckpointError` where the file is absent, empty, truncated or no checkpoint, or asks for code to be run;
    `MissingDependencyError` for safetensors without the package; as `unwrap` does.
    """
    path = Path(path)
    _check_file(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    unwrapped = unwrap(content, path, weights=weights)
    tensors = {key: _plain_tensor(key, value, path) for key, value in unwrapped.weights.items()}
    return FileContent(tensors, plain(unwrapped.meta), sha256_of(path), unwrapped.taken)


def read_checkpoint(path: str | Path, *, weights: str = "auto") -> Checkpoint:
    """The weights of a file under its own key names, and the names that its meta gives.

    Raises as `read_file` does, and `CheckpointError` for weights that are not finite.
    """
    content = read_file(path, weights=weights)
    check_finite(content.weights, path)
    return Checkpoint(content.weights, read_meta(content.meta), content.sha256)


def identify_backbone(state_dict: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """(family, variant), such as ("svt", "s"), of weights under mmseg's or the official repository's keys, or None."""
    dims: dict[int, int] = {}
    blocks: dict[int, set[int]] = {}
    family = "pcpvt"
    for key, value in state_dict.items():
        key = key.removeprefix("backbone.")
        if found := re.fullmatch(r"patch_embeds\.(\d+)\.proj(?:ection)?\.weight", key):
            dims[int(found[1])] = int(value.shape[0]) if value.ndim else 0
        elif found := re.match(r"(?:layers|blocks)\.(\d+)\.(\d+)\.(attn\.qkv\.weight)?", key):
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
            if found[3]:
                family = "svt"
    widths = tuple(dims.get(i, 0) for i in range(4))
    depths = tuple(len(blocks.get(i, ())) for i in range(4))
    for spec in known_specs():
        if (spec.family, spec.embed_dims, spec.depths) == (family, widths, depths):
            return family, spec.variant
    return None


def list_misfits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """How many keys are missing, unexpected and wrongly shaped, with the first few; empty where everything fits."""
    misfits = _misfits(weights, expected)
    parts = []
    for kind in ("missing", "unexpected", "wrongly shaped"):
        keys = [key for what, key in misfits if what == kind]
        if not keys:
            continue
        shown = [_printable(key) for key in keys[:_SHOWN]]
        if kind == "wrongly shaped":
            shown = [f"{key} {_shape(weights[key])} for {_shape(expected[key])}" for key in keys[:_SHOWN]]
        parts.append(f"{len(keys)} {kind} ({', '.join(shown)}{', ...' if len(keys) > _SHOWN else ''})")
    return "; ".join(parts)


def _printable(text: str) -> str:
    """Text out of a file, safe for one line of a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _misfits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """(kind, key) of every difference in keys and shapes."""
    absent = [("missing", key) for key in expected if key not in weights]
    extra = [("unexpected", key) for key in weights if key not in expected]
    shaped = [("wrongly shaped", k) for k, v in weights.items() if k in expected and v.shape != expected[k].shape]
    return absent + extra + shaped


def _check_file(path: Path) -> None:
    """Looks at the first bytes and a zip's directory. Raises `CheckpointError` with causes that torch would hide."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory, not a checkpoint", "name the .pth file in it")
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {path}", "check the path, or get one: twins-trt fetch MODEL")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty", _AGAIN)
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page that was saved in place of a checkpoint", _AGAIN)
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the checkpoint itself", "git lfs pull")
    if head.startswith(b"PK\x03\x04") and path.suffix != ".safetensors":
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                altered = archive.testzip()  # torch would load altered bytes silently
        except zipfile.BadZipFile as error:
            raise CheckpointError(
                f"{path} is truncated after {size} bytes: its directory is missing", _AGAIN
            ) from error
        except Exception as error:  # the directory is damaged: its bytes may cause any error
            raise CheckpointError(f"{path} is damaged: {type(error).__name__} in its directory", _AGAIN) from error
        if altered is not None:
            raise CheckpointError(
                f"{path} is damaged: the checksum of {_printable(altered)} does not match",
                f"{_AGAIN} (or re-save it, if it was saved with torch.serialization.set_crc32_options(False))",
            )
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(
                f"{path} is a TorchScript archive, not a checkpoint", "save model.state_dict() instead"
            )
        if not any(name.endswith("/data.pkl") for name in names):
            raise CheckpointError(
                f"{path} is a zip archive but no checkpoint", "unpack it and name the .pth file in it, if there is one"
            )


def _unpickle(path: Path) -> object:
    try:
        with stand_ins_allowed():
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the file's bytes drive the unpickler and may cause any error
        message = str(error)
        if found := re.search(r"GLOBAL `?([\w.]+)", message):
            raise CheckpointError(
                f"{path} asks for {found[1]} to be run while it is read; refused, nothing was run",
                "if you trust it, re-save only its weights where it was made: torch.save(model.state_dict(), ...)",
            ) from error
        if re.search(r"Unsupported operand \d+|pickle protocol", message):
            raise CheckpointError(
                f"{path} is no torch checkpoint, or one saved with a pickle protocol other than 2",
                "re-save it with torch.save(model.state_dict(), PATH)",
            ) from error
        if found := re.search(r"WeightsUnpickler error: (.+)", message):
            reason = found[1].strip()
        elif isinstance(error, RuntimeError) and message.strip():
            reason = first_line(error)
        else:  # the unpickler's KeyError or IndexError would not help a reader
            reason = "it is no pickle that torch could have written"
        raise CheckpointError(f"{path} is damaged or no checkpoint: {_printable(reason)}", _AGAIN) from error


def _read_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {path} needs safetensors, which is not installed", "pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # as above: its own errors, or torch's
        raise CheckpointError(f"{path} is no safetensors file ({error})", "download it again") from error


def read_meta(raw: dict[str, Any]) -> CheckpointMeta:
    """mmcv's `CLASSES` and `PALETTE`, mmengine's `dataset_meta`, or lower-case names beside them."""
    dataset = raw.get("dataset_meta")
    places = [raw] + ([dataset] if isinstance(dataset, dict) else [])
    values = {key.lower(): value for place in places for key, value in place.items() if value is not None}
    classes, palette = values.get("classes"), values.get("palette")
    classes = [classes] if isinstance(classes, str) and classes else classes  # the comma of a tuple forgotten
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        classes = None
    if not isinstance(palette, list) or not all(_is_colour(entry) for entry in palette):
        palette = None
    return CheckpointMeta(
        classes=tuple(classes) if classes else None,
        palette=tuple((int(r), int(g), int(b)) for r, g, b in palette) if palette else None,
        raw=raw,
    )


def _is_colour(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    return all(isinstance(level, (int, float)) and 0 <= level <= 255 for level in entry)


def _plain_tensor(key: str, value: Tensor, path: Path) -> Tensor:
    """The tensor as float32 or int64. Raises `CheckpointError` for one that is not stored plainly."""
    value = value.detach()
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
        raise CheckpointError(f"{path}: {_printable(key)} is not a plain tensor", "save a float checkpoint")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {_printable(key)} claims more values than the file holds", "save it unexpanded")
    return value.to(torch.float32 if value.is_floating_point() else torch.int64).contiguous()


def check_finite(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises `CheckpointError` for weights that are NaN or infinite."""
    broken = [key for key, value in weights.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        shown = ", ".join(map(_printable, broken[:_SHOWN])) + (", ..." if len(broken) > _SHOWN else "")
        raise CheckpointError(
            f"{path} has NaN or infinite weights in {len(broken)} tensors ({shown})",
            "the training diverged or the file is damaged: use another checkpoint",
        )
