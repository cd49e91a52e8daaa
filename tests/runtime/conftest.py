"""Bundles of tiny graphs, and pictures that show every class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_graphs import PROTOTYPES, MakeBundle, UInt8Array, tensors, tiny_graph, tiny_manifest

from twins_trt.runtime import Bundle, write_bundle
from twins_trt.runtime.tensors import Dim


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """`make_bundle(height, width, batch=1, outputs=("mask",), dtype="uint8", **fields of the manifest)`."""
    made = 0

    def make(
        height: Dim = 24,
        width: Dim = 32,
        *,
        batch: Dim = 1,
        outputs: tuple[str, ...] = ("mask",),
        dtype: str = "uint8",
        **fields: object,
    ) -> Bundle:
        nonlocal made
        made += 1
        image, specs = tensors(height, width, batch, outputs, dtype)
        manifest = replace(tiny_manifest(image, specs), **fields)  # type: ignore[arg-type]
        return write_bundle(tmp_path / f"tiny{made}.bundle", manifest, {"graph.onnx": tiny_graph(image, specs)})

    return make


@pytest.fixture
def picture(rng: np.random.Generator) -> Callable[[int, int], UInt8Array]:
    """`picture(height, width)`: patches of prototype colours with noise, so that every class occurs."""

    def draw(height: int, width: int) -> UInt8Array:
        index = rng.integers(0, len(PROTOTYPES), (-(-height // 6), -(-width // 6))).repeat(6, 0).repeat(6, 1)
        noise = rng.integers(-20, 21, (height, width, 3))
        return np.clip(PROTOTYPES[index[:height, :width]] + noise, 0, 255).astype(np.uint8)

    return draw
