"""Reads the scalars of TensorBoard's event files (TFRecord with protocol buffers), within limits.

Formats: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, framework/summary.proto and
framework/tensor.proto. Checksums are not compared: they are CRC-32C, which the standard library lacks.
"""

import random
import struct
from collections.abc import Iterator
from typing import BinaryIO, Callable, Optional, Union

from train_classifier.core.report import curves
from train_classifier.core.report.curves import Curves

#: Larger events hold images, histograms or a graph.
MAX_EVENT = 1 << 14
#: Events that are read of one file; of a file with more, an even share.
MAX_EVENTS = 10_000
#: Bytes of a small event with its frame, from which the number of events is estimated.
TYPICAL_EVENT = 60

#: Field numbers.
STEP, SUMMARY = 2, 5
VALUE = 1
TAG, SIMPLE_VALUE, TENSOR = 1, 2, 8
DTYPE, CONTENT, FLOAT_VALUE, DOUBLE_VALUE = 1, 4, 5, 6
FLOAT, DOUBLE = 1, 2

Field = tuple[int, Union[int, bytes]]


def read(file: BinaryIO, size: int, is_late: Callable[[], bool] = lambda: False) -> Optional[Curves]:
    """Return the scalars of an event file of `size` bytes, None when it has none; damage ends the reading."""
    lines: dict[str, dict[float, float]] = {}
    # By chance and not every n-th: a model writes its tags in turn. The same share at every reading.
    share = MAX_EVENTS * TYPICAL_EVENT / max(size, 1)
    chance = random.Random(0)
    position = count = 0
    while position + 16 <= size and not (count % 1024 == 0 and is_late()):
        count += 1
        header = file.read(12)
        if len(header) < 12:
            break
        (length,) = struct.unpack("<Q", header[:8])
        position += 16 + length
        # Not an event: zeros of a file that was cut or has holes.
        if not length or position > size:
            break
        if length > MAX_EVENT or (share < 1 and chance.random() > share):
            file.seek(length + 4, 1)
            continue
        event = file.read(length + 4)[:length]
        try:
            _add_scalars(event, lines)
        except (ValueError, struct.error, TypeError):
            continue
    if not lines:
        return None
    return Curves("step", {tag: sorted(points.items()) for tag, points in lines.items()})


def _add_scalars(event: bytes, lines: dict[str, dict[float, float]]) -> None:
    step, summaries = 0, []
    for name, field in _fields(event):
        if name == STEP and isinstance(field, int):
            step = field if field < 1 << 63 else 0
        elif name == SUMMARY and isinstance(field, bytes):
            summaries.append(field)
    for summary in summaries:
        for name, field in _fields(summary):
            if name != VALUE or not isinstance(field, bytes):
                continue
            tag, value = _scalar(field)
            drawable = curves.number(value) if value is not None else None
            if drawable is not None and (tag in lines or len(lines) < curves.MAX_LINES):
                lines.setdefault(tag, {})[float(step)] = drawable


def _scalar(summary_value: bytes) -> tuple[str, Optional[float]]:
    """Return tag and number of a summary's value; None for images and the like."""
    tag, number = "?", None
    for name, field in _fields(summary_value):
        if not isinstance(field, bytes):
            continue
        if name == TAG:
            tag = field.decode("utf-8", "replace")[: curves.MAX_NAME] or "?"
        elif name == SIMPLE_VALUE and len(field) == 4:
            (number,) = struct.unpack("<f", field)
        elif name == TENSOR:
            number = _tensor_number(field)
    return tag, number


def _tensor_number(tensor: bytes) -> Optional[float]:
    """Return the number of a tensor that holds just one."""
    fields = dict(_fields(tensor))
    if fields.get(DTYPE) not in (FLOAT, DOUBLE):
        return None
    code, size, name = ("<f", 4, FLOAT_VALUE) if fields[DTYPE] == FLOAT else ("<d", 8, DOUBLE_VALUE)
    for field in (fields.get(CONTENT), fields.get(name)):
        if isinstance(field, bytes) and len(field) == size:
            number: float = struct.unpack(code, field)[0]
            return number
    return None


def _fields(message: bytes) -> Iterator[Field]:
    """Yield the fields of a message: number, and an integer or bytes. Raises ValueError."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("a group, or no protocol buffer")
        if position + length > end:
            raise ValueError("a field that is longer than its message")
        yield key >> 3, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("the message ends inside a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 64 bits")
