"""The records of a TFDS set that stay on the disk, read and decoded one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from cka_sr_jax.data.crops import decode

SPARE_FILES = 256  # beside those of the set, for all else that a process opens


class Encoded(NamedTuple):
    """A record: the file of an image, and its label."""

    image: bytes
    label: int


class Records:
    """The records of a split of a TFDS set, by index; `repr` says which split of which files.

    Attributes:
      channels: of the decoded images, 1 or 3.
      num_classes: labels are 0 to num_classes - 1.
    """

    def __init__(
        self,
        where: str,
        split: str,
        files: Sequence[Any],
        keys: tuple[str, str],
        channels: int,
        num_classes: int,
    ) -> None:
        """Open nothing yet: each file is opened when a record of it is read.

        Args:
          where: how errors call the set.
          files: what `array_record` reads, such as TFDS's file instructions.
          keys: those of the image and of the label in a record.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        _allow_open_files(len(files))
        self._source = ArrayRecordDataSource(files)
        self._name, self._keys = f"{where}, split {split!r}", keys
        self.channels, self.num_classes = channels, num_classes

    def __len__(self) -> int:
        """How many records."""
        return len(self._source)

    def __getitem__(self, index: int) -> Encoded:
        """One record.

        Raises:
          ValueError: it cannot be read, or its label is outside 0..n-1 for n classes.
        """
        encoded = self._read(index)
        if not 0 <= encoded.label < self.num_classes:
            raise self._error(
                index,
                f"has the label {encoded.label}, and labels are 0 to {self.num_classes - 1}",
            )
        return encoded

    def is_labeled(self) -> bool:
        """Whether the first record has a label: TFDS gives those without the label -1."""
        return self._read(0).label >= 0

    def _read(self, index: int) -> Encoded:
        image_key, label_key = self._keys
        try:
            feature = _parse(self._source[index]).features.feature
            image = feature[image_key].bytes_list.value[0]
            return Encoded(image, int(feature[label_key].int64_list.value[0]))
        except Exception as error:  # whatever the reader makes of a damaged file
            raise self._error(index, f"cannot be read ({error})") from error

    def decoded(self, index: int) -> tuple[Any, int]:
        """A record's image, by Pillow, and its label.

        Raises:
          ValueError: it is damaged.
        """
        image, label = self[index]
        try:
            return decode(image, self.channels), label
        except Exception as error:  # OSError, SyntaxError, DecompressionBombError, ...
            reason = re.sub(r" ?<_io\.BytesIO object at \w+>", "", str(error))
            raise self._error(index, f"cannot be decoded ({reason})") from error

    def _error(self, index: int, problem: str) -> ValueError:
        return ValueError(f"{self._name}: record {index} {problem}; prepare the set again.")

    def __repr__(self) -> str:
        """The same in every process."""
        return f"Records({self._name}, {self._source!r})"


def _parse(record: bytes) -> Any:
    from tensorflow_datasets.proto import tf_example_pb2  # half a second, the first time

    return tf_example_pb2.Example.FromString(record)


def _allow_open_files(count: int) -> None:
    """Let this process, and those that it starts, keep all files of a set open.

    ImageNet has 1024, which is also how many a process may usually open. Windows has no such limit.
    """
    try:
        import resource
    except ModuleNotFoundError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
