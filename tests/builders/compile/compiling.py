"""Bundles to compile, and machines that compile them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from fake_builder import building_module
from fake_cuda import install_machine
from fake_gpu import FakeGpu
from tiny_graphs import MakeBundle

from twins_trt.device import Device
from twins_trt.runtime import Bundle, write_bundle
from twins_trt.runtime.manifest import AwaitedEngine

VERSIONS = ("8.6.1", "10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")
ORIN = Device("Orin", "sm_87", integrated=True)
ADA = Device("NVIDIA RTX 4000 Ada", "sm_89")
Install = Callable[..., Any]
ToCompile = Callable[..., Bundle]


def installer(monkeypatch: pytest.MonkeyPatch, home: Path) -> Install:
    """install(version, device) makes this machine one with that TensorRT and GPU; it returns the module."""
    monkeypatch.setattr(Path, "home", lambda: home)

    def install(version: str = "10.3.0", device: Device | None = ORIN, **more: Any) -> Any:
        gpu = FakeGpu(integrated=device is not None and device.integrated)
        module = building_module(version, gpu, **more)
        install_machine(monkeypatch, gpu, module, device, package=None)
        return module

    return install


def bundle_maker(make_bundle: MakeBundle) -> ToCompile:
    """to_compile(height, width, attentions=0, forms="gpu", int8=None, **fields) makes a bundle without an engine."""

    def to_compile(
        height: Any = 24,
        width: Any = 32,
        *,
        attentions: int = 0,
        forms: str = "gpu",
        int8: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Bundle:
        bundle = make_bundle(height, width, **fields)
        model = onnx.load_from_string(bundle.graph.read_bytes())
        info = {"attentions": attentions, "options": {"forms": forms}}
        for key, value in (("twins_trt.info", json.dumps(info)), ("twins_trt.precision", bundle.precision)):
            entry = model.metadata_props.add()
            entry.key, entry.value = key, value
        files: dict[str, bytes | Path] = {"graph.onnx": model.SerializeToString()}
        if int8 is not None:
            files["audit.json"] = json.dumps({"engines": [], "int8": int8}).encode()
        awaits = (AwaitedEngine("sm_87", "jetson-orin", "10.3"),)
        manifest = replace(bundle.manifest, files=(), awaits=awaits)
        return write_bundle(bundle.path, manifest, files, overwrite=True)

    return to_compile
