"""An image-classification set that stays on the disk: images are decoded when they are needed.

A batch is a function of (seed, step) alone. Which images it has is that of `batch_indices`, the
crop of each image depends on (seed, epoch, index of the image), and every record can be read by its
index. So no iterator has a state to save, a resumed run goes on with the very batch that would have
been next, and any number of workers, or of processes that feed a part of the batch each, gives the
same images.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from cka_sr_jax.data.crops import center_crop, random_crop
from cka_sr_jax.data.pipeline import epoch_order, eval_batches, place_in_epoch
from cka_sr_jax.data.records import Records

# That of a large set takes megabytes, and every worker process keeps its own.
_order = functools.lru_cache(maxsize=2)(epoch_order.__wrapped__)


class Streamed:
    """Some consecutive records of a split, which look like an array of `shape` but are not one."""

    shape: tuple[int, ...]
    what: str

    def __init__(self, records: Records, start: int, stop: int) -> None:
        """Of the records `start` to `stop` - 1."""
        self.records, self.start, self.stop = records, start, stop

    def __len__(self) -> int:
        """How many examples."""
        return self.stop - self.start

    def _records_of(self, indices: slice | Int[np.ndarray, " n"]) -> list[int]:
        return (self.start + np.arange(len(self))[indices]).tolist()

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        """Never: all examples at once are what does not fit in memory."""
        raise ValueError(
            f"This needs the {self.what} of all {len(self)} examples in memory, and with "
            "data.stream=True they stay on the disk: use a set that fits in memory, with "
            "data.stream=False, or do without what needs them."
        )


class StreamedImages(Streamed):
    """Images uint8 [n, side, side, c] that are decoded where they are indexed: center crops."""

    what, dtype, ndim = "images", np.dtype(np.uint8), 4

    def __init__(self, records: Records, start: int, stop: int, side: int) -> None:
        """Of the records `start` to `stop` - 1, cut to squares of `side` pixels."""
        super().__init__(records, start, stop)
        self.side = side
        self.shape = (len(self), side, side, records.channels)

    def part(self, start: int, stop: int) -> StreamedImages:
        """The examples `start` to `stop` - 1 of these, still on the disk."""
        return StreamedImages(self.records, self.start + start, self.start + stop, self.side)

    @property
    def labels(self) -> StreamedLabels:
        """Their labels."""
        return StreamedLabels(self.records, self.start, self.stop)

    def __getitem__(
        self, indices: slice | Int[np.ndarray, " n"]
    ) -> UInt8[np.ndarray, "n side side c"]:
        """The images of these examples.

        Raises:
          ValueError: a record is damaged.
        """
        found = [self.records.decoded(i)[0] for i in self._records_of(indices)]
        crops = [center_crop(image, self.side) for image in found]
        return np.stack(crops) if crops else np.zeros((0, *self.shape[1:]), np.uint8)


class StreamedLabels(Streamed):
    """Labels int32 [n] that are read where they are indexed."""

    what, dtype, ndim = "labels", np.dtype(np.int32), 1

    def __init__(self, records: Records, start: int, stop: int) -> None:
        """Of the records `start` to `stop` - 1."""
        super().__init__(records, start, stop)
        self.shape = (len(self),)

    def __getitem__(self, indices: slice | Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The labels of these examples.

        Raises:
          ValueError: a record is damaged.
        """
        return np.array([self.records[i].label for i in self._records_of(indices)], np.int32)


class TrainingBatches:
    """A run's batches by their number: random crops, of which the device makes the rest.

    Item i is the batch of step `steps[i]`: {"image": uint8 [rows, side, side, c], "label": int32
    [rows], "index": int32 [rows]}.
    """

    def __init__(
        self,
        images: StreamedImages,
        seed: int,
        batch_size: int,
        steps: range,
        rows: Int[np.ndarray, " rows"],
    ) -> None:
        """Read nothing yet.

        Args:
          rows: those of the batch that are wanted.
        """
        self._images, self._seed, self._batch_size = images, seed, batch_size
        self._steps, self._rows = steps, rows

    def __len__(self) -> int:
        """How many batches."""
        return len(self._steps)

    def __getitem__(self, i: Any) -> dict[str, np.ndarray]:
        """The batch of step `steps[i]`.

        Raises:
          ValueError: a record is damaged.
        """
        images = self._images
        epoch, place = place_in_epoch(self._steps[i], len(images), self._batch_size)
        indices = _order(self._seed, epoch, len(images))[place][self._rows]
        crops = np.empty((len(indices), *images.shape[1:]), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for row, index in enumerate(indices.tolist()):
            image, labels[row] = images.records.decoded(images.start + index)
            # The last word keeps these draws apart from those of the epoch's order.
            rng = np.random.default_rng((self._seed, epoch, index, 1))
            crops[row] = random_crop(rng, image, images.side)
        return {"image": crops, "label": labels, "index": indices}

    def __repr__(self) -> str:
        """The same in every process, as Grain asks of a source."""
        return f"TrainingBatches({self._images.records!r}, {self._steps}, seed={self._seed})"


class EvaluationBatches:
    """All examples in order, as batches of one size, by their number.

    Item i is {"image": uint8 [rows, side, side, c], "label": int32 [rows], "weight": float32
    [rows]}; the weight is 0 where the last batch is filled up.
    """

    def __init__(
        self, images: StreamedImages, batch_size: int, rows: Int[np.ndarray, " rows"]
    ) -> None:
        """Read nothing yet; `rows` are those of each batch that are wanted."""
        self._images = images
        self._batches = [
            (indices[rows], weights[rows])
            for indices, weights in eval_batches(len(images), batch_size)
        ]

    def __len__(self) -> int:
        """How many batches."""
        return len(self._batches)

    def __getitem__(self, i: Any) -> dict[str, np.ndarray]:
        """The i-th batch.

        Raises:
          ValueError: a record is damaged.
        """
        images, (indices, weights) = self._images, self._batches[i]
        crops = np.zeros((len(indices), *images.shape[1:]), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        for row in np.flatnonzero(weights):
            image, labels[row] = images.records.decoded(images.start + int(indices[row]))
            crops[row] = center_crop(image, images.side)
        return {"image": crops, "label": labels, "weight": weights}

    def __repr__(self) -> str:
        """The same in every process, as Grain asks of a source."""
        return f"EvaluationBatches({self._images.records!r}, {len(self)})"
