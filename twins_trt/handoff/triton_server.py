"""A model repository of NVIDIA Triton Inference Server.

Source: Triton's model repository and model configuration pages, and the messages of model_config.proto.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.errors import BundleError
from twins_trt.handoff.engines import Chosen, capability, choose, is_for_cpus, refuse_cpu_graph
from twins_trt.handoff.folder import Handoff, HandoffOptions, readme_notes
from twins_trt.handoff.prototext import Symbol, prototext
from twins_trt.runtime.advice import rebuild_with

if TYPE_CHECKING:
    from twins_trt.inference.interface import GraphInterface
    from twins_trt.inference.tensors import TensorSpec
    from twins_trt.runtime.bundle import Bundle
    from twins_trt.runtime.manifest import Manifest

UNBOUNDED_BATCH = 8
"""The largest batch if neither the graph nor the user limits it."""

_TYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32"}


def resolve(bundle: Bundle, options: HandoffOptions) -> Handoff:
    """The repository: `NAME/config.pbtxt`, `NAME/1/`, the labels, and a README that says how to start it."""
    files, notes = model_files(bundle, options)
    files["README.md"] = _readme(bundle.interface, model_name(bundle, options), notes).encode()
    return Handoff("triton-server", bundle, files, notes=tuple(notes))


def model_name(bundle: Bundle, options: HandoffOptions) -> str:
    """The model's name in requests."""
    return options.name or bundle.manifest.model


def model_files(bundle: Bundle, options: HandoffOptions) -> tuple[dict[str, bytes | Path], list[str]]:
    """The files of one model, by path below the repository, and notes on them."""
    name = model_name(bundle, options)
    chosen = choose(bundle, options.engine, tool="Triton")
    weights: dict[str, bytes | Path] = {}
    if chosen.engines:
        refuse_cpu_graph(bundle, tool="TensorRT in Triton")
        files = _engine_files(chosen)
        weights = {f"{name}/1/{files[t]}": bundle.file(engine.file) for t, engine in chosen.engines.items()}
    else:
        weights[f"{name}/1/model.onnx"] = bundle.graph
    on_cpu = not chosen.engines and is_for_cpus(bundle)
    config = prototext(_config(bundle.manifest, name, chosen, options, on_cpu=on_cpu))
    labels = "".join(f"{label}\n" for label in bundle.interface.classes)
    model: dict[str, bytes | Path] = {
        f"{name}/config.pbtxt": config.encode(),
        f"{name}/labels.txt": labels.encode(),
        **weights,
    }
    return model, _notes(bundle.manifest, chosen)


def max_batch_size(manifest: Manifest, wanted: int | None) -> int:
    """Triton's `max_batch_size`: 0 for a graph of fixed batch, whose first dimension Triton does not change.

    wanted: the largest batch that the user wants. Raises BundleError if the graph cannot take it.
    """
    interface = manifest.interface
    low, high = interface.batch_limits
    if isinstance(interface.image.shape[0], int):
        if wanted not in (None, low):
            raise BundleError(
                f"the graph takes {low} images at a time, not up to {wanted}",
                rebuild_with(manifest.rebuild, {"--batch": f"1:{wanted}:{wanted}"}),
            )
        return 0
    if wanted is None:
        return high or max(UNBOUNDED_BATCH, low)
    if wanted < low or (high is not None and wanted > high):
        raise BundleError(
            f"the graph takes {low} to {high} images at a time, not up to {wanted}",
            rebuild_with(manifest.rebuild, {"--batch": f"{min(low, wanted)}:{wanted}:{wanted}"}),
        )
    return wanted


def _config(
    manifest: Manifest, name: str, chosen: Chosen, options: HandoffOptions, *, on_cpu: bool
) -> dict[str, object]:
    """The fields of model_config.proto. on_cpu: never use a GPU, for which the graph was not written."""
    interface = manifest.interface
    largest = max_batch_size(manifest, options.max_batch)
    engine = bool(chosen.engines)
    kind = "KIND_GPU" if engine else "KIND_CPU" if on_cpu else "KIND_AUTO"
    files = _engine_files(chosen) if engine else {"": "model.onnx"}
    several = files if len(set(files.values())) > 1 else {}
    return {
        "name": name,
        "backend": "tensorrt" if engine else "onnxruntime",
        "max_batch_size": largest,
        "default_model_filename": next(iter(files.values())),
        "cc_model_filenames": [{"key": capability(target), "value": file} for target, file in several.items()],
        "input": [_tensor(spec, batched=largest > 0) for spec in interface.inputs],
        "output": [_tensor(spec, batched=largest > 0) for spec in interface.outputs],
        "dynamic_batching": _batching(interface.image, largest, options.queue_delay),
        "instance_group": [{"count": options.instances, "kind": Symbol(kind)}],
        # One launch instead of two hundred. It needs a single shape for each batch size.
        "optimization": {"cuda": {"graphs": True}} if engine and interface.size is not None else None,
        "model_warmup": _warmup(interface, largest),
        "parameters": [{"key": key, "value": {"string_value": text}} for key, text in _parameters(manifest).items()],
    }


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, object]:
    dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    kind = Symbol(f"TYPE_{_TYPES[spec.dtype]}")
    return {"name": spec.name, "data_type": kind, "dims": dims[1:] if batched else dims}


def _batching(image: TensorSpec, largest: int, delay: int) -> dict[str, object] | None:
    if largest < 2:
        return None
    optimal = image.opt[0] if image.opt is not None else largest
    preferred = sorted({min(optimal, largest), largest} - {1})
    return {"preferred_batch_size": preferred, "max_queue_delay_microseconds": delay}


def _warmup(interface: GraphInterface, largest: int) -> list[dict[str, object]]:
    """Black images, so that kernels and memory are ready for the first request."""
    image = interface.image
    shape = image.opt or image.shape
    if any(not isinstance(dim, int) for dim in shape[1:]):
        return []  # a dynamic size without a profile, so no size is likely
    batched = largest > 0
    black = {"data_type": Symbol(f"TYPE_{_TYPES[image.dtype]}"), "dims": shape[1:] if batched else shape}
    inputs = [{"key": image.name, "value": {**black, "zero_data": True}}]
    batches = sorted({max(1, interface.batch_limits[0]), largest}) if batched else [1]
    return [{"name": f"black_{batch}", "batch_size": batch, "inputs": inputs} for batch in batches]


def _parameters(manifest: Manifest) -> dict[str, str]:
    interface = manifest.interface
    values = {
        "classes": list(interface.classes),
        "palette": [list(colour) for colour in interface.palette],
        "mean": list(interface.preprocessing.mean),  # in the order of `channels`
        "std": list(interface.preprocessing.std),
        "channels": interface.preprocessing.channels,
        "normalised_inside": interface.layout == "NHWC",  # spelled as in repositories that clients read
        "padding": manifest.padding,
        "precision": manifest.precision,
        "gate": manifest.gate,
        "source": manifest.source.sha256 or "seeded",
    }
    return {key: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for key, v in values.items()}


def _engine_files(chosen: Chosen) -> dict[str, str]:
    """By target, the file of the repository that holds its engine; one engine may serve several targets."""
    names: dict[str, str] = {}
    for target, engine in chosen.engines.items():
        names.setdefault(engine.file, f"model_{target}.plan")
    if len(names) == 1:
        return dict.fromkeys(chosen.engines, "model.plan")
    return {target: names[engine.file] for target, engine in chosen.engines.items()}


def _notes(manifest: Manifest, chosen: Chosen) -> list[str]:
    notes, interface = [], manifest.interface
    if chosen.first is None:
        notes.append("Triton's onnxruntime backend runs the graph: the folder holds no engine of TensorRT")
        if manifest.awaits:
            there = ", ".join(dict.fromkeys(each.device or each.target for each in manifest.awaits))
            notes.append(f"for an engine, run twins-trt compile on the bundle on {there}, and hand it over from there")
    else:
        notes.append(f"Triton has to come with TensorRT {chosen.first.version}, which wrote the engine")
    if interface.layout == "NCHW":
        order = ", in BGR" if interface.preprocessing.channels == "bgr" else ""
        notes.append(f"clients have to resize and normalize{order}: mean and std are among the model's parameters")
    if interface.output("mask") is None and interface.output("logits") is not None:
        notes.append("clients have to resize the logits to the image's size and take the argmax")
    if interface.threshold is not None and interface.output("probability") is not None:
        notes.append(f"a pixel is {interface.classes[1]} where its probability is above {interface.threshold:g}")
    return notes


def _readme(interface: GraphInterface, name: str, notes: list[str]) -> str:
    image = interface.image
    shape = [dim if isinstance(dim, int) else dim.lower() for dim in image.shape]
    pixels = ", ".join("1" if i == 0 else str(dim) for i, dim in enumerate(shape))
    wanted = "mask" if interface.output("mask") is not None else interface.outputs[0].name
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
