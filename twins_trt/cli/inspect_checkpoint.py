"""What `twins-trt inspect` shows of a checkpoint: what it holds, and every convention with its origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twins_trt.cli.console import megabytes, table
from twins_trt.codec import encode
from twins_trt.errors import CheckpointError
from twins_trt.models.conventions import Fact
from twins_trt.models.examine import Examined, OpenedCheckpoint, examine, open_checkpoint
from twins_trt.models.widths import backbone_spec
from twins_trt.models.zoo import ModelSpec
from twins_trt.verbs.inspect import InspectRequest


def describe_checkpoint(path: Path, request: InspectRequest) -> tuple[dict[str, Any], str]:
    """The record of a checkpoint, and its text. One that does not fit is described as far as it goes, with the reason.

    Raises `CheckpointError` for a file that cannot be read, `UsageError` for flags that do not fit it.
    """
    opened = open_checkpoint(path, weights=request.weights or "auto")
    try:
        found = examine(
            path,
            padding=request.padding,
            weights=request.weights or "auto",
            conventions=request.conventions,
        )
    except CheckpointError as error:
        return _of_no_model(path, opened, error)
    return _of_a_model(path, opened, found)


def _common(path: Path, opened: OpenedCheckpoint) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What is shown of every checkpoint."""
    content, recognized = opened.content, opened.recognized
    tensors = content.weights.values()
    parameters = sum(value.numel() for value in tensors if value.is_floating_point())
    record = {
        "kind": "checkpoint",
        "path": str(path),
        "size": path.stat().st_size,
        "origin": recognized.origin,
        "tensors": len(content.weights),
        "parameters": parameters,
        "sha256": content.sha256,
        "weights": content.taken,
        "licence": recognized.licence,
        "meta": _finite(content.meta),
    }
    rows = [
        ("checkpoint", f"{path}, {megabytes(path.stat().st_size)}"),
        ("tensors", f"{len(content.weights)}, {parameters / 1e6:.2f} M values"),
        ("sha256", content.sha256),
        ("written by", recognized.origin or "no project that is known"),
    ]
    rows += [("weights", f"{content.taken}, of two sets")] if content.taken else []
    rows += [("licence", recognized.licence)] if recognized.licence else []
    return record, rows


def _of_no_model(path: Path, opened: OpenedCheckpoint, error: CheckpointError) -> tuple[dict[str, Any], str]:
    """A backbone alone, or weights that no command would take."""
    record, rows = _common(path, opened)
    reason = error.cause.removeprefix(f"{path} ")
    try:
        backbone = backbone_spec(opened.recognized.state_dict, path)
    except CheckpointError:
        backbone = None
    name = None if backbone is None or opened.recognized.whole else backbone.name
    record |= {"model": None, "fits": False, "reason": reason, "fix": error.fix, "backbone": name}
    what = ("holds", f"the backbone {name}, without a head") if name else ("does not fit", reason)
    more = [what, ("fix", error.fix)] if error.fix else [what]
    return record, table([rows[0], *more, *rows[1:]])


def _of_a_model(path: Path, opened: OpenedCheckpoint, found: Examined) -> tuple[dict[str, Any], str]:
    record, rows = _common(path, opened)
    told, spec = found.conventions, found.spec
    facts = [*_of_the_spec(found), *told.facts]
    record |= {
        "model": spec.name,
        "fits": True,
        "num_classes": found.num_classes,
        "backbone": f"{spec.family}-{spec.variant}",
        "spec": _widths(spec),
        "source": encode(found.source),
        "classes": None if told.classes is None else list(told.classes),
        "palette": None if told.palette is None else [list(colour) for colour in told.palette],
        "conventions": {fact.name: {"value": fact.value, "origin": fact.where} for fact in facts},
        "ignored": list(found.ignored),
    }
    head = "one logit, " if told.threshold is not None else ""
    more = [("holds", f"{spec.name}, {head}{found.num_classes} classes")]
    record["origin"], rows[3] = found.source.origin, ("written by", found.source.origin)
    if found.ignored:
        few = ", ".join(found.ignored[:3]) + (", ..." if len(found.ignored) > 3 else "")
        more.append(("ignored", f"{len(found.ignored)} tensors that inference does not use: {few}"))
    shown = [("", "value", "from"), *((fact.name, _short(fact.value), fact.where) for fact in facts)]
    return record, f"{table([rows[0], *more, *rows[1:]])}\n\n{table(shown)}"


def _of_the_spec(found: Examined) -> list[Fact]:
    """The architecture's numbers. Those that the configuration or a flag states are among the conventions' facts."""
    stated = {fact.name for fact in found.conventions.facts}
    by_origin = ("num_heads", "window_size", "norm_eps", "block_norm_eps")
    facts = []
    for name, value in _widths(found.spec).items():
        if name not in stated:
            text = ",".join(map(str, value)) if isinstance(value, list) else f"{value}"
            facts.append(Fact(name, text, "default" if name in by_origin else "weights"))
    return facts


def _widths(spec: ModelSpec) -> dict[str, Any]:
    head = ("fpn_channels",) if spec.head == "fpn" else ("uper_channels", "auxiliary_channels")
    names = ("embed_dims", "depths", "mlp_ratios", "sr_ratios", *head, "num_heads", "window_size")
    return {name: encode(getattr(spec, name)) for name in (*names, "norm_eps", "block_norm_eps")}


def _short(text: str) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _finite(value: Any) -> Any:
    """The value with None for NaN and infinities, which a checkpoint's meta may hold and JSON may not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value
