"""Packed bundles for tests: small ones, and tar files member by member."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_graphs import tensors, tiny_manifest

from twins_trt.runtime import EngineFile, Manifest
from twins_trt.runtime.archive import pack_bundle, seal
from twins_trt.runtime.manifest import AwaitedEngine

ENGINE = EngineFile("engines/orin.engine", "tensorrt", "10.3.0", ("sm_87",))
CONTENT: dict[str, bytes | Path] = {
    "graph.onnx": b"graph" * 1000,
    "gate.json": b'{"passed": true}',
    "a b.json": b"{}",
}


def road_manifest() -> Manifest:
    """Of a bundle that awaits the engine of a device."""
    plain = tiny_manifest(*tensors(24, 32, 1, ("mask",), "uint8"))
    return replace(plain, awaits=(AwaitedEngine("sm_87", "jetson-orin", "10.3"),), created="2026-01-02T03:04:05+00:00")


def packed(path: Path, manifest: Manifest, files: dict[str, bytes | Path] | None = None, **options: Any) -> Path:
    files = CONTENT if files is None else files
    pack_bundle(path, seal(manifest, files), files, **options)
    return path


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", **fields: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write_tar(path: Path, members: list[Member], *, end: bytes = bytes(10240)) -> Path:
    blocks = b"".join(
        info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512) for info, content in members
    )
    path.write_bytes(blocks + end)
    return path


def good(manifest: Manifest, files: dict[str, bytes | Path] | None = None) -> list[Member]:
    content: dict[str, Any] = dict(CONTENT if files is None else files)
    text = seal(manifest, content).dumps().encode()
    return [member(f"road.bundle/{name}", data) for name, data in {"manifest.json": text, **content}.items()]


def alter(members: list[Member]) -> None:
    members[1] = member(members[1][0].name, members[1][1][:-1] + b"X")
