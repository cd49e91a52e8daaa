"""A collection: histograms of every observed tensor, which merge exactly and can be stored."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.calib.histogram import Histogram
from twins_trt.calib.images import data_key, refuse_noise, refuse_too_few
from twins_trt.calib.observers import amax
from twins_trt.calib.options import CalibrationOptions
from twins_trt.calib.ranges import Ranges, TensorRange, range_key, write_atomically
from twins_trt.codec import decode, encode
from twins_trt.errors import DataError, first_line
from twins_trt.spelling import speaking

_FORMAT = 2


@dataclass
class Collection:
    """What was counted over the images of one run, or of several merged shards.

    collected_with: runtime, version and provider. histograms: by tensor, in the order of the graph. digests: 32 bytes
    for each image; nothing else grows with the number of images. noisy: how many images look like noise. channels: the
    largest magnitude of each channel, float32 [C], of the tensors in `channelled_tensors`.
    """

    graph_sha256: str
    settings: CalibrationOptions
    collected_with: str
    histograms: dict[str, Histogram]
    digests: list[bytes] = field(default_factory=list)
    noisy: int = 0
    channels: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A key of graph and options: collections with the same key can be merged."""
        return range_key(self.graph_sha256, "", self.settings)

    def ranges(self) -> Ranges:
        """The ranges that every observer chooses. Raises DataError for too few images, and if most are noise."""
        refuse_too_few(len(set(self.digests)), self.settings.minimum)
        refuse_noise(self.noisy, len(self.digests))
        ranges = {
            name: TensorRange(
                histogram.min,
                histogram.max,
                {o: amax(o, histogram, self.settings) for o in self.settings.observers},
                tuple(map(float, self.channels.get(name, ()))),
            )
            for name, histogram in self.histograms.items()
        }
        return Ranges(
            graph_sha256=self.graph_sha256,
            data_key=data_key(self.digests),
            settings=self.settings,
            images=len(self.digests),
            collected_with=self.collected_with,
            ranges=ranges,
        )


def merge(shards: Iterable[Collection]) -> Collection:
    """One collection of all images of `shards`, which may be in any order. The counts are those of a single run.

    Raises DataError where there are no shards, where their graphs or options differ, and where two hold the same image.
    """
    parts = list(shards)
    if not parts:
        raise DataError("there are no shards to merge", "give at least one collection")
    first = parts[0]
    total = Collection(
        first.graph_sha256,
        first.settings,
        ", ".join(sorted({part.collected_with for part in parts})),
        {name: Histogram.empty(first.settings.bins) for name in first.histograms},
    )
    for part in parts:
        if part.key != first.key or list(part.histograms) != list(first.histograms):
            raise DataError(
                f"shards are of different graphs or settings: {first.key} and {part.key}", "calibrate them alike"
            )
        if twice := set(total.digests) & set(part.digests):
            raise DataError(f"{len(twice)} images are in more than one shard", "give every shard its own images")
        total.digests += part.digests
        total.noisy += part.noisy
        for name, histogram in part.histograms.items():
            total.histograms[name].merge(histogram)
        for name, largest in part.channels.items():
            total.channels[name] = np.maximum(total.channels.get(name, np.float32(0)), largest)
    return total


def save_collection(collection: Collection, path: str | Path) -> Path:
    """Writes a collection, whole or not at all. Raises DataError where it cannot be written."""
    histograms = collection.histograms
    facts = {
        "format": _FORMAT,
        "graph_sha256": collection.graph_sha256,
        "settings": encode(collection.settings),
        "collected_with": collection.collected_with,
        "noisy": collection.noisy,
        "digests": [each.hex() for each in collection.digests],
        "histograms": {name: [h.exponent, h.zeros, h.min, h.max] for name, h in histograms.items()},
        # Written as a float64, a float32 is read back unchanged.
        "channels": {name: largest.tolist() for name, largest in collection.channels.items()},
    }
    buffer = io.BytesIO()
    counts = np.stack([histogram.counts for histogram in histograms.values()])
    np.savez(buffer, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), counts=counts)
    path = Path(path)
    write_atomically(path, buffer.getvalue())
    return path


def load_collection(path: str | Path) -> Collection:
    """The inverse of `save_collection`. Raises DataError for a file that is missing, damaged or of another version."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts: dict[str, Any] = json.loads(stored["facts"].tobytes())
            counts = stored["counts"]
        if facts["format"] != _FORMAT:
            raise ValueError(f"it is of format {facts['format']}, this twins-trt reads {_FORMAT}")
        with speaking(None):  # errors name the file's fields, in Python and on the command line
            options = decode(CalibrationOptions, facts["settings"], "settings")
        if counts.shape != (len(facts["histograms"]), options.bins) or counts.dtype != np.int64:
            raise ValueError(f"its counts are {counts.dtype} {list(counts.shape)}")
        histograms = {
            name: Histogram(counts[i].copy(), exponent, zeros, low, high)
            for i, (name, (exponent, zeros, low, high)) in enumerate(facts["histograms"].items())
        }
        digests = [bytes.fromhex(each) for each in facts["digests"]]
        channels = {name: np.array(largest, np.float32) for name, largest in facts["channels"].items()}
        return Collection(
            facts["graph_sha256"], options, facts["collected_with"], histograms, digests, facts["noisy"], channels
        )
    except Exception as error:  # zip, npy, JSON and our own checks each raise their own
        raise DataError(f"{path} is no collection: {first_line(error)}", "remove the file and collect again") from error
