"""The float32 model that a bundle is compared with, and its masks of a data set's images, each computed once."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.images import JudgedImage, UInt8Array
from twins_trt.calib.images import digest
from twins_trt.data import Dataset
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.data.resizing import resize_image, resize_mask
from twins_trt.errors import CheckpointError, DataError, MissingDependencyError, UsageError
from twins_trt.evaluation import ConfusionMatrix
from twins_trt.files import whole_file
from twins_trt.inference import predict_mask
from twins_trt.models.weights import load_weights
from twins_trt.runtime import Bundle
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.inference.interface import GraphInterface
    from twins_trt.models.segmentor import Segmentor

Mask = npt.NDArray[np.uint8]

log = logging.getLogger("twins_trt")


class ReferenceMasks:
    """The masks of a float32 model.

    preprocessing: of each image before the model; None for normalization alone. folder: keeps the masks for later runs,
    each under a name that changes with any weight, pixel or option; None keeps nothing. A damaged mask is computed
    again.
    computed: how many masks the model has computed.
    """

    def __init__(self, model: Segmentor, *, preprocessing: Preprocessing | None, folder: Path | None) -> None:
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
                return self._model(torch.as_tensor(x))

        self.computed += 1
        return predict_mask(logits, image, preprocessing=self._preprocessing)


class ModelImages:
    """The images of a data set, with the masks of a PyTorch model: `GateImages`.

    interface: of the graph that is judged. The reference gets each image as the engine does: if a graph of fixed size
    resizes it, the reference gets the resized image. So only the engine is judged. cache: a folder that keeps the
    masks (`ReferenceMasks`).
    Raises `DataError` for images without labels.
    """

    pack = None

    def __init__(
        self, model: Segmentor, dataset: Dataset, interface: GraphInterface, *, cache: Path | None = None
    ) -> None:
        if not dataset.labelled:
            raise DataError(f"{dataset.source} has no labels to score against", "use a data set with labels")
        self.dataset, self.split = dataset.source, dataset.split
        self.model = model
        self._samples, self._interface = dataset, interface
        preprocessing = interface.preprocessing if interface.size is None else None
        self._references = ReferenceMasks(model, preprocessing=preprocessing, folder=cache)
        self._seconds = 0.0

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def seconds(self) -> float | None:
        """See `GateImages`; None if masks came from the cache, so that this would not be the model's time."""
        return self._seconds if self._references.computed >= len(self) else None

    def __iter__(self) -> Iterator[JudgedImage]:
        for name, image, label in self.samples():
            started = time.perf_counter()
            reference = self._references(image)
            self._seconds += time.perf_counter() - started
            counts = ConfusionMatrix.of(reference, label, num_classes=self._interface.num_classes)
            yield JudgedImage(name, image, label, reference, counts)

    def samples(self) -> Iterator[tuple[str, UInt8Array, UInt8Array]]:
        """Name, image and label of every sample, at the size at which the engine gets it. The model does not run."""
        size = self._interface.size
        for sample in self._samples.load():
            if sample.label is None:
                raise DataError(f"{sample.name} of {self.dataset} has no label", "use a data set with labels")
            if size is None or sample.image.shape[:2] == size:
                yield sample.name, sample.image, sample.label
            else:
                yield sample.name, resize_image(sample.image, size), resize_mask(sample.label, size)


def _load_mask(path: Path, shape: tuple[int, ...]) -> Mask:
    with np.load(path, allow_pickle=False) as stored:
        mask: Mask = stored["mask"]
    if mask.dtype != np.uint8 or mask.shape != shape:
        raise ValueError(f"it holds {mask.dtype} {list(mask.shape)}, not uint8 {list(shape)}")
    return mask


def reference_images(bundle: Bundle, model: Segmentor, dataset: Dataset, *, cache: Path | None = None) -> ModelImages:
    """The images to judge a bundle on. model: with the weights that it was built from. cache: as in `ModelImages`.

    Raises `UsageError` for a model other than the bundle's, `DataError` for images without labels.
    """
    manifest = bundle.manifest
    if (model.spec.name, model.num_classes) != (manifest.model, manifest.interface.num_classes):
        raise UsageError(
            f"the reference is {model.spec.name} with {model.num_classes} classes, the bundle {manifest.model} "
            f"with {manifest.interface.num_classes}",
            "give the checkpoint that the bundle was built from",
        )
    return ModelImages(model, dataset, manifest.interface, cache=cache)


def load_reference(bundle: Bundle, *, checkpoint: str | None, seeded: bool) -> Segmentor:
    """The float32 model with the weights that a bundle was built from.

    checkpoint: their file. seeded: whether the weights are seeded. Raises `UsageError` and `CheckpointError` for other
    weights than the bundle's, `MissingDependencyError` without torch.
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
    )
    if facts.source.sha256 != manifest.source.sha256:
        raise CheckpointError(
            f"{checkpoint} (sha256 {facts.source.sha256}) is not what {bundle.path} was built from "
            f"({manifest.source.checkpoint}, sha256 {manifest.source.sha256})",
            f"give the bundle's own: {spelled('checkpoint', 'FILE')}",
        )
    return model


def _model_key(model: Segmentor, preprocessing: Preprocessing | None) -> bytes:
    hashed = hashlib.sha256()
    facts = [model.spec.name, model.padding, None if preprocessing is None else preprocessing.to_json()]
    hashed.update(json.dumps(facts, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        hashed.update(key.encode())
        hashed.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return hashed.digest()
