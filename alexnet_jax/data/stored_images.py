"""The images of one split as they are stored, decoded into memory that the caller gives.

This module runs in worker processes too, so it imports neither jax nor tensorflow_datasets.
"""

import bisect
import itertools
import threading
from typing import NamedTuple

import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader

from alexnet_jax.data.tf_example import image_and_label

# For random access: no read-ahead, and no threads of its own.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_FILE_BUFFER = 32 << 10  # bytes; the default of 1 MiB is a hundred times a record


class Stored(NamedTuple):
    """Where and how the images of a split are stored: what another process needs to read them.

    Attributes:
      files: the path of each shard, and its number of records.
      image_size: side S of the squares, in pixels.
      jpeg: whether they are stored as JPEG, otherwise as uint8.
    """

    files: list[tuple[str, int]]
    image_size: int
    jpeg: bool


class StoredImages:
    """Random access to the images of a split, from any thread. A file is opened when it is needed.

    ArrayRecord checks a hash of what it reads, and a JPEG must decode without a warning.
    """

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.shape = (stored.image_size, stored.image_size, 3)
        self._ends = list(itertools.accumulate(number for _, number in stored.files))
        self._readers: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int, image: np.ndarray) -> int:
        """Decode image `index` into `image`, uint8 (S, S, 3), contiguous, and return its label.

        Raises whatever array_record, protobuf and simplejpeg raise for what they cannot read.
        """
        shard, index = self.located(index)
        [record] = self.reader(shard).read(index, index + 1)
        content, label = image_and_label(record)
        if self.stored.jpeg:
            decoded = simplejpeg.decode_jpeg(content, "RGB", buffer=image)
            if decoded.shape != self.shape:
                raise ValueError(f"an image of shape {decoded.shape}, not {self.shape}")
        else:
            image[:] = np.frombuffer(content, np.uint8).reshape(self.shape)
        return label

    def reader(self, shard: int) -> ArrayRecordReader:
        """Return the reader of a shard; open the file if it has not been opened."""
        reader = self._readers.get(shard)
        if reader is None:
            with self._lock:
                if shard not in self._readers:
                    self._readers[shard] = ArrayRecordReader(
                        self.stored.files[shard][0],
                        options=_READER_OPTIONS,
                        file_reader_buffer_size=_FILE_BUFFER,
                    )
                reader = self._readers[shard]
        return reader

    def located(self, index: int) -> tuple[int, int]:
        """Return the shard of an image and its index there."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def name(self, index: int) -> str:
        """Return the index of the record in its shard and the shard's file, for messages."""
        shard, index = self.located(index)
        return f"record {index} of {self.stored.files[shard][0]}"
