"""TensorBoard's event files of a run: each step once, however often the run was interrupted."""

import pathlib
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

_FILE = "events.out.tfevents.*"
_HEADER, _FOOTER = 12, 4  # bytes around a record: its length and a checksum; another one


class EventsFile:
    """A new file of scalars and images in `directory`; not on the disk before `flush`.

    tensorboardX's own SummaryWriter writes in a thread, and what is still in its queue is lost
    with the process.
    """

    def __init__(self, directory: pathlib.Path, first_step: int) -> None:
        directory.mkdir(exist_ok=True)
        # Its name holds the second; a run may be continued twice in one.
        self._writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
        # A TensorBoard that is looking on drops what it has of this step and later ones.
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add the scalars of `step`, by their tags."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(step, Summary(value=values))

    def image(self, step: int, tag: str, pixels: np.ndarray) -> None:
        """Add an image, uint8 (rows, columns, 3)."""
        self._write(step, summary.image(tag, pixels, dataformats="HWC"))

    def hyperparameters(self, step: int, values: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Show `values` by their names in the tab HPARAMS, beside the scalars of tags `metrics`."""
        shown = {n: v if isinstance(v, str | int | float) else str(v) for n, v in values.items()}
        experiment, session, _ = summary.hparams(shown, dict.fromkeys(metrics, 0.0))
        self._write(step, experiment)
        self._write(step, session)

    def _write(self, step: int, of_step: Summary) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=of_step))

    def flush(self) -> None:
        """Bring everything written so far to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


def cut(directory: pathlib.Path, stays: Callable[[int, str], bool]) -> None:
    """Take from each file in `directory` the first event that does not stay, and all after it.

    `stays(step, tag)` is asked for every value. An event torn by a crash ends its file, too; a
    file in which no scalar is left is removed.
    """
    for path in directory.glob(_FILE):
        with path.open("r+b") as file:
            scalars = end = 0
            while (event := _next_event(file)) is not None:
                if not all(stays(event.step, value.tag) for value in event.summary.value):
                    break
                scalars += sum(map(_is_scalar, event.summary.value))
                end = file.tell()
            file.truncate(end)
        if not scalars:
            path.unlink()


def scalars(directory: pathlib.Path) -> Iterator[tuple[int, str, float]]:
    """Yield (step, tag, value) of all scalars in the event files of `directory`."""
    for path in sorted(directory.glob(_FILE)):
        with path.open("rb") as file:
            while (event := _next_event(file)) is not None:
                for value in filter(_is_scalar, event.summary.value):
                    yield event.step, value.tag, value.simple_value


def _is_scalar(value: Summary.Value) -> bool:
    return value.WhichOneof("value") == "simple_value"


def _next_event(file: BinaryIO) -> Event | None:
    header = file.read(_HEADER)
    if len(header) < _HEADER:
        return None
    (length,) = struct.unpack_from("<Q", header)
    record = file.read(length + _FOOTER) if length < 2**31 else b""
    if len(record) < length + _FOOTER:
        return None
    try:
        return Event.FromString(record[:length])
    except Exception:  # protobuf's own, of what is no event
        return None
