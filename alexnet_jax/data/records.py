"""Random access to the records of a prepared data set, decoded into memory that the caller gives.

ArrayRecord checks a hash of what it reads, and a JPEG must decode without a warning, so damage is
noticed. A damaged record raises an error that names it. With `on_error='skip'` the next readable
record of its split, in stored order, replaces it; which one does not depend on the batch, the step
or the process. Damaged records are counted, and more than 1 % of the split are refused.
"""

import bisect
import itertools
import pathlib
import sys
import threading

import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.errors import InputError, limit_met

MAX_DAMAGED = 0.01  # share of a split's records that on_error='skip' may pass over
_NAMED = 10  # damaged records that are named on stderr; more are only counted
# For random access: no read-ahead, and no threads of its own.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_FILE_BUFFER = 32 << 10  # bytes; the default of 1 MiB is a hundred times a record


class Records:
    """The records of one split. May be read from any thread.

    Attributes:
      damaged: indices of the records that could not be read so far.
    """

    def __init__(
        self,
        shards: list[tuple[pathlib.Path, int]],
        image_size: int,
        *,
        jpeg: bool,
        on_error: str = "raise",
    ) -> None:
        """Take the files of the shards with their numbers of records; open none."""
        self._paths = [path for path, _ in shards]
        self._ends = list(itertools.accumulate(number for _, number in shards))
        self._shape = (image_size, image_size, 3)
        self._jpeg = jpeg
        self._on_error = on_error
        self._readers: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()
        self.damaged: set[int] = set()

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int, image: np.ndarray) -> int:
        """Decode record `index` into `image`, uint8 (S, S, 3), contiguous, and return its label.

        Raises:
          InputError: it cannot be read, or with on_error='skip' too many cannot be read.
        """
        while True:
            if index not in self.damaged:
                try:
                    return self._read(index, image)
                except MemoryError:
                    raise
                except Exception as error:  # array_record, protobuf and simplejpeg share no class
                    self._note(index, error)
            index = (index + 1) % len(self)

    def _read(self, index: int, image: np.ndarray) -> int:
        shard, index = self._located(index)
        [record] = self._reader(shard).read(index, index + 1)
        # Deserializing with tfds takes six times as long, for two fields.
        fields = tf_example_pb2.Example.FromString(record).features.feature
        content = fields["image"].bytes_list.value[0]
        if self._jpeg:
            decoded = simplejpeg.decode_jpeg(content, "RGB", buffer=image)
            if decoded.shape != self._shape:
                raise ValueError(f"an image of shape {decoded.shape}, not {self._shape}")
        else:
            image[:] = np.frombuffer(content, np.uint8).reshape(self._shape)
        return fields["label"].int64_list.value[0]

    def _reader(self, shard: int) -> ArrayRecordReader:
        reader = self._readers.get(shard)
        if reader is None:
            with self._lock:
                if shard not in self._readers:
                    self._readers[shard] = ArrayRecordReader(
                        str(self._paths[shard]),
                        options=_READER_OPTIONS,
                        file_reader_buffer_size=_FILE_BUFFER,
                    )
                reader = self._readers[shard]
        return reader

    def _note(self, index: int, error: Exception) -> None:
        """Count a damaged record; raise InputError where that is not allowed."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        message = f"{self.name(index)} cannot be read ({reason})"
        if remedy := limit_met(error):  # nothing is damaged
            raise InputError(f"{message}: {remedy}") from error
        if self._on_error == "raise":
            raise InputError(
                f"{message}: remove the directory to rebuild it, or skip damaged records with"
                " --config.dataset.on_error=skip"
            ) from error
        with self._lock:
            self.damaged.add(index)
            number = len(self.damaged)
        if number > MAX_DAMAGED * len(self):
            raise InputError(
                f"more than {MAX_DAMAGED:.0%} of the {len(self)} records are damaged, which"
                f" on_error=skip does not accept; the last: {message}"
            ) from error
        if number <= _NAMED:
            print(f"skipped: {message}", file=sys.stderr)

    def name(self, index: int) -> str:
        """Return the index of the record in its shard and the shard's file, for messages."""
        shard, index = self._located(index)
        return f"record {index} of {self._paths[shard]}"

    def _located(self, index: int) -> tuple[int, int]:
        """Return the shard of a record and its index there."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)
