"""The float32 model that a bundle is compared with, and its masks of a data set's images, each computed once."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.doubt import recorded_miou
from twins_trt.builders.gate.images import JudgedImage, UInt8Array
from twins_trt.calib.images import digest
from twins_trt.codec import encode
from twins_trt.data import Dataset
from twins_trt.data.images import IGNORE_INDEX
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.data.resizing import resize_image, resize_mask
from twins_trt.errors import CheckpointError, DataError, MissingDependencyError, UsageError
from twins_trt.evaluation import ConfusionMatrix
from twins_trt.files import whole_file
from twins_trt.inference import predict_mask
from twins_trt.models.convention_flags import NAMES
from twins_trt.models.weights import load_weights
from twins_trt.runtime import Bundle
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.inference.interface import GraphInterface
    from twins_trt.models.conventions import Conventions
    from twins_trt.models.segmentor import Segmentor

Mask = npt.NDArray[np.uint8]

log = logging.getLogger("twins_trt")


class ReferenceMasks:
    """The masks of a float32 model.

    preprocessing: of each image before the model. folder: keeps the masks for later runs,
    each under a name that changes with any weight, pixel or option; None keeps nothing. A damaged mask is computed
    again.
    computed: how many masks the model has computed.
    """

    def __init__(self, model: Segmentor, *, preprocessing: Preprocessing, folder: Path | None) -> None:
        self.computed = 0
        self._model = model
        self._preprocessing = preprocessing
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._key = _model_key(model, preprocessing)

    def __call__(self, image: npt.NDArray[np.uint8]) -> Mask:
        """image: uint8 [H, W, 3], RGB -> classes uint8 [H, W]."""
        if self._folder is None:
            return self._compute(image)
        name = hashlib.sha256(self._key + digest(image)).hexdigest()
        path = self._folder / f"{name}.npz"
        if path.exists():
            try:
                return _load_mask(path, image.shape[:2])
            except Exception as error:  # zip, zlib and npy each raise their own
                log.warning("%s is damaged (%s): the mask is computed again", path, error)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        mask = self._compute(image)
        with whole_file(path, durable=False) as file:
            np.savez_compressed(file, mask=mask)
        return mask

    def _compute(self, image: npt.NDArray[np.uint8]) -> Mask:
        import torch

        def logits(x: npt.NDArray[np.float32]) -> Any:
            with torch.inference_mode():
                return self._model.class_logits(self._model(torch.as_tensor(x)))

        self.computed += 1
        return predict_mask(logits, image, preprocessing=self._preprocessing)


class ModelImages:
    """The images of a data set, with the masks of a PyTorch model: `GateImages`.

    interface: of the graph that is judged. The reference gets each image as the engine does: if a graph of fixed size
    resizes it, the reference gets the resized image. So only the engine is judged. miou: see `GateImages`. cache: a
    folder that keeps the masks (`ReferenceMasks`).
    Raises `DataError` for images without labels.
    """

    pack = None

    def __init__(
        self,
        model: Segmentor,
        dataset: Dataset,
        interface: GraphInterface,
        *,
        miou: float | None = None,
        cache: Path | None = None,
    ) -> None:
        if not dataset.labelled:
            raise DataError(f"{dataset.source} has no labels to score against", "use a data set with labels")
        self.dataset, self.split = dataset.source, dataset.split
        self.model, self.miou = model, miou
        self._samples, self._interface = dataset, interface
        preprocessing = interface.preprocessing
        if interface.size is not None:  # every image has the graph's size already
            preprocessing = replace(preprocessing, test_scale=None, keep_ratio=True)
        self._references = ReferenceMasks(model, preprocessing=preprocessing, folder=cache)
        self._seconds = 0.0

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def seconds(self) -> float | None:
        """See `GateImages`; None if masks came from the cache, so that this would not be the model's time."""
        return self._seconds if self._references.computed >= len(self) else None

    def __iter__(self) -> Iterator[JudgedImage]:
        for labelled in self.samples():
            started = time.perf_counter()
            reference = self._references(labelled.image)
            self._seconds += time.perf_counter() - started
            counts = ConfusionMatrix.of(reference, labelled.label, num_classes=self._interface.num_classes)
            yield JudgedImage(
                labelled.name, labelled.image, labelled.label, reference, counts, labelled.outside, labelled.highest
            )

    def samples(self) -> Iterator[LabelledImage]:
        """Every sample at the size at which the engine gets it. The model does not run."""
        size, classes = self._interface.size, self._interface.num_classes
        for sample in self._samples.load():
            if sample.label is None:
                raise DataError(f"{sample.name} of {self.dataset} has no label", "use a data set with labels")
            image, label = sample.image, sample.label
            if size is not None and image.shape[:2] != size:
                image, label = resize_image(image, size), resize_mask(label, size)
            strange = (label >= classes) & (label != IGNORE_INDEX)
            outside = int(np.count_nonzero(strange))
            highest = int(label[strange].max()) if outside else 0
            yield LabelledImage(
                sample.name, image, np.where(strange, IGNORE_INDEX, label).astype(np.uint8), outside, highest
            )


@dataclass(frozen=True)
class LabelledImage:
    """A `JudgedImage` before the reference has run."""

    name: str
    image: UInt8Array
    label: UInt8Array
    outside: int
    highest: int


def _load_mask(path: Path, shape: tuple[int, ...]) -> Mask:
    with np.load(path, allow_pickle=False) as stored:
        mask: Mask = stored["mask"]
    if mask.dtype != np.uint8 or mask.shape != shape:
        raise ValueError(f"it holds {mask.dtype} {list(mask.shape)}, not uint8 {list(shape)}")
    return mask


def reference_images(bundle: Bundle, model: Segmentor, dataset: Dataset, *, cache: Path | None = None) -> ModelImages:
    """The images to judge a bundle on. model: with the weights that it was built from. cache: as in `ModelImages`.

    Labels are read as the model's checkpoint says, or the flags that the bundle was built with.
    Raises `UsageError` for a model other than the bundle's, `DataError` for images without labels.
    """
    manifest = bundle.manifest
    if (model.spec.name, model.num_classes) != (manifest.model, manifest.interface.num_classes):
        raise UsageError(
            f"the reference is {model.spec.name} with {model.num_classes} classes, the bundle {manifest.model} "
            f"with {manifest.interface.num_classes}",
            "give the checkpoint that the bundle was built from",
        )
    told = manifest.miou if model.conventions.miou is None else model.conventions.miou
    miou = recorded_miou(told, model=manifest.model, source=manifest.source, classes=manifest.interface.classes)
    return ModelImages(model, model.conventions.labels_of(dataset), manifest.interface, miou=miou, cache=cache)


def load_reference(bundle: Bundle, *, checkpoint: str | None, seeded: bool) -> Segmentor:
    """The float32 model with the weights that a bundle was built from, and with the conventions of their file.

    checkpoint: their file. seeded: whether the weights are seeded. Flags that the bundle was built with hold here too.
    Raises `UsageError` and `CheckpointError` for other weights than the bundle's, and for a file that says of images
    and scores what the bundle contradicts; `MissingDependencyError` without torch.
    """
    if find_spec("torch") is None:
        raise MissingDependencyError(
            "the float32 reference needs torch, which is not installed",
            'pip install "twins-trt[build]"; or judge on a pack that was written where torch is, in place of '
            f"{spelled('data')}: {spelled('pack', 'FILE')}",
        )
    manifest = bundle.manifest
    if manifest.source.seeded != seeded:
        has = "seeded weights" if manifest.source.seeded else f"the weights of {manifest.source.checkpoint}"
        fix = spelled("seeded", True) if manifest.source.seeded else spelled("checkpoint", "FILE")
        raise UsageError(f"{bundle.path} has {has}", f"give {fix}")
    model, facts = load_weights(
        manifest.model,
        checkpoint=checkpoint,
        seeded=seeded,
        num_classes=manifest.interface.num_classes,
        padding=manifest.padding,
        weights=manifest.source.weights or "auto",
        conventions={each.name: each.value for each in manifest.facts if each.origin == "flag" and each.name in NAMES},
    )
    if facts.source.sha256 != manifest.source.sha256:
        raise CheckpointError(
            f"{checkpoint} (sha256 {facts.source.sha256}) is not what {bundle.path} was built from "
            f"({manifest.source.checkpoint}, sha256 {manifest.source.sha256})",
            f"give the bundle's own: {spelled('checkpoint', 'FILE')}",
        )
    _compare(bundle, model.conventions)
    return model


def _compare(bundle: Bundle, told: Conventions) -> None:
    """Raises `CheckpointError`, naming the field and both values, where the file contradicts the bundle in what decides
    its masks. A contradiction about labels alone is logged: the file's value is taken."""
    manifest = bundle.manifest
    ours, theirs = manifest.interface.preprocessing, told.preprocessing
    rows: list[tuple[str, object, object]] = [
        ("mean", ours.mean, theirs.mean),
        ("std", ours.std, theirs.std),
        ("channels", ours.channels, theirs.channels),
        ("threshold", manifest.interface.threshold, told.threshold),
    ]
    for name, here, there in rows:
        if here != there:
            raise CheckpointError(
                f"{bundle.path} was built with {name} {_shown(here)}, and its checkpoint says {_shown(there)}",
                f"build it again: {manifest.rebuild}",
            )
    labels: list[tuple[str, object, object]] = [
        ("reduce_zero_label", manifest.reduce_zero_label, told.reduce_zero_label),
        ("ignore_index", manifest.ignore_index, told.ignore_index),
    ]
    for name, here, there in labels:
        if here != there:
            log.warning(
                "%s was built with %s %s, and its checkpoint says %s, which is taken",
                bundle.path,
                name,
                _shown(here),
                _shown(there),
            )


def _shown(value: object) -> str:
    if value is None:
        return "unset"
    return ",".join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value)


def _model_key(model: Segmentor, preprocessing: Preprocessing) -> bytes:
    hashed = hashlib.sha256()
    facts = [encode(model.spec), model.padding, model.threshold, preprocessing.to_json()]
    hashed.update(json.dumps(facts, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        hashed.update(key.encode())
        hashed.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return hashed.digest()
