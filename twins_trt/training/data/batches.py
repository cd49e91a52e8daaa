"""The pictures of each step, read and augmented: a pure function of seed and iteration.

Nothing is remembered between steps, so a resumed run, or one with more processes, sees the same pictures, crops and
colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from twins_trt.data.datasets import Item, Sample
from twins_trt.data.images import IGNORE_INDEX, UInt8Array
from twins_trt.data.preprocessing import Size
from twins_trt.errors import DataError
from twins_trt.training.data.augment import Augmentation

Draw = tuple[int, Item]
"""The number of a sample, counted from the start of the training, and its files."""


@dataclass(frozen=True)
class Batch:
    """One process's share of a step.

    images: uint8 [N, H, W, 3], RGB, at the top left of the crop. labels: uint8 [N, H, W], 255 outside of the picture.
    sizes: (height, width) of each picture, at most (H, W).
    """

    images: UInt8Array
    labels: UInt8Array
    sizes: tuple[Size, ...]


class Draws(Sequence[tuple[Draw, ...]]):
    """The samples of process `rank` of `world`: its share of the batch of each iteration from `start` to `stop`.

    The data set is shuffled again after every epoch (mmengine's InfiniteSampler).
    """

    def __init__(
        self, items: Sequence[Item], *, seed: int, batch: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        self._items = items
        self._seed = seed
        self._batch = batch
        self._share = batch // world
        self._rank = rank
        self._start = start
        self._stop = stop
        self._shuffled: dict[int, npt.NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, index: int) -> tuple[Draw, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[Draw, ...]]: ...

    def __getitem__(self, index: int | slice) -> tuple[Draw, ...] | Sequence[tuple[Draw, ...]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = (self._start + index) * self._batch + self._rank * self._share
        return tuple((number, self._item(number)) for number in range(first, first + self._share))

    def _item(self, number: int) -> Item:
        epoch, place = divmod(number, len(self._items))
        if epoch not in self._shuffled:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._items))
            self._shuffled = {epoch: order}
        return self._items[self._shuffled[epoch][place]]


@dataclass(frozen=True)
class BatchReader:
    """Reads, augments and stacks the samples of `Draws`. It can be pickled, so that other processes can read ahead.

    read: returns the sample of an item.
    """

    read: Callable[[Item], Sample]
    augmentation: Augmentation
    seed: int

    def __call__(self, draws: Sequence[Draw]) -> Batch:
        """Raises ImageError and DataError as the data set does."""
        height, width = self.augmentation.crop
        images = np.zeros((len(draws), height, width, 3), np.uint8)
        labels = np.full((len(draws), height, width), IGNORE_INDEX, np.uint8)
        sizes = []
        for i, (number, item) in enumerate(draws):
            sample = self.read(item)
            if sample.label is None:
                raise DataError(f"{item.image} has no label", "add it to the labels/ folder")
            # The leading 0 keeps these seeds apart from the shuffling's, (seed, epoch).
            image, label = self.augmentation(sample.image, sample.label, np.random.default_rng((0, self.seed, number)))
            sizes.append((image.shape[0], image.shape[1]))
            images[i, : image.shape[0], : image.shape[1]] = image
            labels[i, : label.shape[0], : label.shape[1]] = label
        return Batch(images, labels, tuple(sizes))
