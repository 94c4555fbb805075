"""Decides which image files may be shown in a report: whole PNG and JPEG files of moderate size, by content.

A browser decodes them; nothing is decoded here. SVG is never shown, since it may hold programs and links.
"""

import struct
import zlib
from typing import NamedTuple, Optional

#: Largest file, and most pixels: a small file may hold a picture that fills a browser's memory.
MAX_BYTES = 512 << 10
MAX_PIXELS = 1 << 24

_PNG = b"\x89PNG\r\n\x1a\n"
#: JPEG markers with the size: baseline, extended and progressive frames.
_FRAMES = (0xC0, 0xC1, 0xC2)
_SCAN = 0xDA


class ImageSize(NamedTuple):
    """Kind (png or jpeg), width and height in pixels."""

    kind: str
    width: int
    height: int


def check(data: bytes) -> Optional[ImageSize]:
    """Return kind and size of an image that may be shown, None for anything else."""
    if len(data) > MAX_BYTES:
        return None
    try:
        image = _png(data) if data.startswith(_PNG) else _jpeg(data)
    except (struct.error, IndexError):
        return None
    if image is None or not 0 < image.width * image.height <= MAX_PIXELS:
        return None
    return image


def _png(data: bytes) -> Optional[ImageSize]:
    """Return the size if all chunks are whole, from IHDR to IEND, and nothing follows."""
    position, size = len(_PNG), None
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(data[position + 4 : end]) != checksum:
            return None
        if size is None:
            if name != b"IHDR" or length != 13:
                return None
            size = ImageSize("png", *struct.unpack_from(">II", data, position + 8))
        if name == b"IEND":
            return size if end + 4 == len(data) else None
        position = end + 4
    return None


def _jpeg(data: bytes) -> Optional[ImageSize]:
    """Return the size if the segments are whole up to the scan, and the end marker is the last."""
    if not data.startswith(b"\xff\xd8\xff") or not data.endswith(b"\xff\xd9"):
        return None
    position, size = 2, None
    while data[position] == 0xFF:
        marker = data[position + 1]
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = ImageSize("jpeg", width, height)
        if marker == _SCAN:
            return size
        position += 2 + length
    return None
