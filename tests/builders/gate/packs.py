"""Small bundles, images, references and packs for the tests of packs."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_graphs import CLASSES as TINY_CLASSES
from tiny_graphs import PREPROCESSING, PROTOTYPES, nearest_class

from twins_trt.builders.gate import ModelImages, PackKey, packing
from twins_trt.data import open_dataset
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.inference.interface import GraphInterface
from twins_trt.models.source import Source
from twins_trt.runtime import Bundle
from twins_trt.verbs.build import BuildRequest

MakeJetsonBundle = Callable[..., Bundle]
"""The fixture `jetson_bundle`."""

SIZE, CLASSES, IMAGES = (64, 96), 5, 30


def write_images(folder: Path, *, images: int = IMAGES, size: tuple[int, int] = SIZE) -> str:
    """Blocks of colour, with labels that the tiny graphs get right in two of three blocks; some are ignored. Returns
    the data set's name."""
    rng = np.random.default_rng(3)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    tall, wide = -(-size[0] // 16), -(-size[1] // 16)
    for i in range(images):
        blocks = rng.integers(0, 255, (tall * 2, wide * 2, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        Image.fromarray(blocks[: size[0], : size[1]]).save(folder / "images" / f"{i:02}.png")
        labels = rng.integers(0, CLASSES + 1, (tall, wide)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        labels[labels == CLASSES] = 255
        right = rng.integers(0, 3, (tall, wide)).repeat(16, 0).repeat(16, 1) > 0
        labels = np.where(right & (labels != 255), nearest_class(blocks), labels)
        Image.fromarray(labels[: size[0], : size[1]]).save(folder / "labels" / f"{i:02}.png")
    (folder / "classes.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    return f"folder:{folder}"


def small(path: Path, **fields: Any) -> BuildRequest:
    """A build of the demo's model with seeded weights, for the CPU."""
    more = {"size": SIZE, "num_classes": CLASSES, "targets": ("cpu",), **fields}
    return BuildRequest("twins_svt-demo_fpn", str(path), seeded=True, **more)


class Nearest:
    """A model of torch that computes what `tiny_graphs` computes: the nearest prototype's class."""

    def class_logits(self, logits: Any) -> Any:
        return logits

    def __call__(self, pixels: Any) -> Any:
        import torch

        mean, std, colours = (
            torch.tensor(np.asarray(each), dtype=torch.float64)
            for each in (PREPROCESSING.mean, PREPROCESSING.std, PROTOTYPES)
        )
        image = pixels.double() * std[:, None, None] + mean[:, None, None]
        return (2 * torch.einsum("nchw,kc->nkhw", image, colours) - (colours**2).sum(1)[:, None, None]).float()


def nearest_images(data: str, interface: GraphInterface, *, limit: int | None = None) -> ModelImages:
    """The images of a data set with the masks of `Nearest`."""
    return ModelImages(Nearest(), open_dataset(data).first(limit), interface)  # type: ignore[arg-type]


def tiny_pack(path: Path, data: str, bundle: Bundle, *, limit: int | None = None) -> Path:
    """A pack for a bundle of `make_bundle`."""
    images = nearest_images(data, bundle.interface, limit=limit)
    with packing(path, images, PackKey.of_bundle(bundle), limit=limit) as written:
        for _ in written:
            pass
    return path


KEY = PackKey("twins_svt-s_fpn", Source("tiny.pth", "ab" * 32), "parity", TINY_CLASSES, Preprocessing(), (4, 6))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def members(path: Path) -> dict[str, bytes]:
    """Name and content of everything in a pack."""
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def rewrite(path: Path, changed: dict[str, bytes]) -> None:
    """Writes a pack of these members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in changed.items():
            archive.writestr(name, content)


def change_head(path: Path, change: Callable[[dict[str, Any]], object], *, digests: bool = False) -> None:
    """Changes `pack.json` in a pack. digests: the digest of the data is that of the changed images."""
    found = members(path)
    head = json.loads(found["pack.json"])
    change(head)
    if digests:
        parts = "".join(each["image"] + each["label"] for each in head["images"])
        head["data_sha256"] = hashlib.sha256(parts.encode()).hexdigest()
    rewrite(path, {**found, "pack.json": json.dumps(head).encode()})


def digest_of(array: np.ndarray) -> str:
    """As the head has it, by its definition."""
    return hashlib.sha256(f"{array.dtype.str} {list(array.shape)} ".encode() + array.tobytes()).hexdigest()


def other_key(**fields: Any) -> PackKey:
    return replace(KEY, **fields)
