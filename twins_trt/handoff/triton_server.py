"""A model repository of NVIDIA Triton Inference Server.

Source: Triton's model repository and model configuration pages, and the messages of model_config.proto.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.errors import BundleError
from twins_trt.handoff.engines import Chosen, capability, choose, rebuild_with
from twins_trt.handoff.folder import Handoff, HandoffOptions, readme_notes
from twins_trt.handoff.prototext import Symbol, prototext

if TYPE_CHECKING:
    from twins_trt.inference.tensors import TensorSpec
    from twins_trt.runtime.bundle import Bundle
    from twins_trt.runtime.manifest import Manifest

UNBOUNDED_BATCH = 8
"""The largest batch where neither the graph nor the user limits it."""

_TYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32"}


def plan(bundle: Bundle, options: HandoffOptions) -> Handoff:
    """The repository: `NAME/config.pbtxt`, `NAME/1/`, the labels and how to start it."""
    files, notes = model_files(bundle, options)
    files["README.md"] = _readme(bundle.manifest, model_name(bundle, options), notes).encode()
    return Handoff("triton-server", bundle, files, notes=tuple(notes))


def model_name(bundle: Bundle, options: HandoffOptions) -> str:
    """What the model is called in requests."""
    return options.name or bundle.manifest.model


def model_files(bundle: Bundle, options: HandoffOptions) -> tuple[dict[str, bytes | Path], list[str]]:
    """The files of one model, below the repository, and what to know about them."""
    manifest, name = bundle.manifest, model_name(bundle, options)
    chosen = choose(bundle, options.engine, tool="Triton")
    weights: dict[str, bytes | Path] = {}
    if chosen.engines:
        plans = _plans(chosen)
        weights = {f"{name}/1/{plans[t]}": bundle.file(engine.file) for t, engine in chosen.engines.items()}
    else:
        weights[f"{name}/1/model.onnx"] = bundle.graph
    config = prototext(_config(manifest, name, chosen, options))
    labels = "".join(f"{label}\n" for label in manifest.interface.classes)
    files: dict[str, bytes | Path] = {
        f"{name}/config.pbtxt": config.encode(),
        f"{name}/labels.txt": labels.encode(),
        **weights,
    }
    return files, _notes(manifest, chosen)


def max_batch_size(manifest: Manifest, wanted: int | None) -> int:
    """Triton's `max_batch_size`: 0 for a graph of fixed batch, whose first dimension Triton leaves alone.

    wanted: no more than this. Raises BundleError if the graph cannot take that.
    """
    low, high = manifest.interface.batch_limits
    if isinstance(manifest.interface.image.shape[0], int):
        if wanted not in (None, low):
            raise BundleError(
                f"the graph takes {low} images at a time, not up to {wanted}",
                rebuild_with(manifest, {"--batch": f"1:{wanted}:{wanted}"}),
            )
        return 0
    if wanted is None:
        return high or max(UNBOUNDED_BATCH, low)
    if wanted < low or (high is not None and wanted > high):
        raise BundleError(
            f"the graph takes {low} to {high} images at a time, not up to {wanted}",
            rebuild_with(manifest, {"--batch": f"{min(low, wanted)}:{wanted}:{wanted}"}),
        )
    return wanted


def _config(manifest: Manifest, name: str, chosen: Chosen, options: HandoffOptions) -> dict[str, object]:
    largest = max_batch_size(manifest, options.max_batch)
    engine = bool(chosen.engines)
    plans = _plans(chosen) if engine else {"": "model.onnx"}
    several = plans if len(set(plans.values())) > 1 else {}
    return {
        "name": name,
        "backend": "tensorrt" if engine else "onnxruntime",
        "max_batch_size": largest,
        "default_model_filename": next(iter(plans.values())),
        "cc_model_filenames": [{"key": capability(target), "value": file} for target, file in several.items()],
        "input": [_tensor(spec, batched=largest > 0) for spec in manifest.interface.inputs],
        "output": [_tensor(spec, batched=largest > 0) for spec in manifest.interface.outputs],
        "dynamic_batching": _batching(manifest, largest, options.queue_delay),
        "instance_group": [{"count": options.instances, "kind": Symbol("KIND_GPU" if engine else "KIND_AUTO")}],
        # One launch instead of two hundred; only where each batch size has a single shape.
        "optimization": {"cuda": {"graphs": True}} if engine and manifest.interface.size is not None else None,
        "model_warmup": _warmup(manifest, largest),
        "parameters": [{"key": key, "value": {"string_value": text}} for key, text in _parameters(manifest).items()],
    }


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, object]:
    dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    kind = Symbol(f"TYPE_{_TYPES[spec.dtype]}")
    return {"name": spec.name, "data_type": kind, "dims": dims[1:] if batched else dims}


def _batching(manifest: Manifest, largest: int, delay: int) -> dict[str, object] | None:
    if largest < 2:
        return None
    usual = manifest.interface.image.opt[0] if manifest.interface.image.opt is not None else largest
    preferred = sorted({min(usual, largest), largest} - {1})
    return {"preferred_batch_size": preferred, "max_queue_delay_microseconds": delay}


def _warmup(manifest: Manifest, largest: int) -> list[dict[str, object]]:
    """Black images, so that the first request finds kernels and memory ready."""
    image = manifest.interface.image
    shape = image.opt or image.shape
    if any(not isinstance(dim, int) for dim in shape[1:]):
        return []  # a dynamic size without a profile: none is usual
    batched = largest > 0
    black = {"data_type": Symbol(f"TYPE_{_TYPES[image.dtype]}"), "dims": shape[1:] if batched else shape}
    inputs = [{"key": image.name, "value": {**black, "zero_data": True}}]
    batches = sorted({max(1, manifest.interface.batch_limits[0]), largest}) if batched else [1]
    return [{"name": f"black_{batch}", "batch_size": batch, "inputs": inputs} for batch in batches]


def _parameters(manifest: Manifest) -> dict[str, str]:
    values = {
        "classes": list(manifest.interface.classes),
        "palette": [list(colour) for colour in manifest.interface.palette],
        "mean": list(manifest.interface.preprocessing.mean),
        "std": list(manifest.interface.preprocessing.std),
        "normalized_inside": manifest.interface.layout == "NHWC",
        "padding": manifest.padding,
        "precision": manifest.precision,
        "gate": manifest.gate,
        "source": manifest.source.sha256 or "seeded",
    }
    return {key: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for key, v in values.items()}


def _plans(chosen: Chosen) -> dict[str, str]:
    """The file of the repository that holds the engine for each target; one engine may serve several."""
    names: dict[str, str] = {}
    for target, engine in chosen.engines.items():
        names.setdefault(engine.file, f"model_{target}.plan")
    if len(names) == 1:
        return dict.fromkeys(chosen.engines, "model.plan")
    return {target: names[engine.file] for target, engine in chosen.engines.items()}


def _notes(manifest: Manifest, chosen: Chosen) -> list[str]:
    notes = []
    if chosen.first is None:
        notes.append("Triton's onnxruntime backend runs the graph: the folder holds no engine of TensorRT")
    else:
        notes.append(f"Triton has to come with TensorRT {chosen.first.version}, which wrote the engine")
    if manifest.interface.layout == "NCHW":
        notes.append("clients have to resize and normalize: mean and std are among the model's parameters")
    if manifest.interface.output("mask") is None:
        notes.append("clients have to resize the logits to the image's size and take the argmax")
    return notes


def _readme(manifest: Manifest, name: str, notes: list[str]) -> str:
    image = manifest.interface.image
    shape = [dim if isinstance(dim, int) else dim.lower() for dim in image.shape]
    pixels = ", ".join("1" if i == 0 else str(dim) for i, dim in enumerate(shape))
    wanted = "mask" if manifest.interface.output("mask") is not None else "logits"
    return f"""# {name}, for NVIDIA Triton Inference Server

    docker run --rm --gpus all -p 8000:8000 -v "$PWD:/models" nvcr.io/nvidia/tritonserver:TAG \\
        tritonserver --model-repository=/models

{readme_notes(notes)}

With `pip install "tritonclient[http]"`:

```python
import tritonclient.http as triton

client = triton.InferenceServerClient("localhost:8000")
image = triton.InferInput("{image.name}", [{pixels}], "{_TYPES[image.dtype]}")
image.set_data_from_numpy(pixels)  # {image}
{wanted} = client.infer("{name}", [image]).as_numpy("{wanted}")
```
"""
