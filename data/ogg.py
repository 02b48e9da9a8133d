"""Ogg pages: whether the last one is there, and a serial number that is not random.

Source: RFC 3533, "The Ogg Encapsulation Format Version 0". libsndfile draws each
stream's serial number from the clock, so that the same sound gives other bytes each time.
"""

import struct
import zlib
from collections.abc import Iterator

CAPTURE = b"OggS"
END_OF_STREAM = 4

_HEADER = struct.Struct("<4sBBqIIIB")  # up to the number of segments
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def pages(content: bytes) -> Iterator[tuple[int, int, int]]:
    """(first byte, end, header type) of every page that is whole."""
    place = 0
    while content[place : place + 4] == CAPTURE and place + 27 <= len(content):
        _, _, flags, _, _, _, _, segments = _HEADER.unpack_from(content, place)
        lengths = content[place + 27 : place + 27 + segments]
        end = place + 27 + segments + sum(lengths)
        if len(lengths) < segments or end > len(content):
            return
        yield place, end, flags
        place = end


def is_whole(content: bytes) -> bool:
    """Whether the last page of the last stream is there."""
    flags = 0
    for _, _, flags in pages(content):
        pass
    return bool(flags & END_OF_STREAM)


def with_serial(content: bytes, serial: int) -> bytes:
    """The same file of one stream with another serial number and its checksums."""
    result = bytearray(content)
    for start, end, _ in pages(content):
        struct.pack_into("<I", result, start + 14, serial)
        struct.pack_into("<I", result, start + 22, 0)
        struct.pack_into("<I", result, start + 22, checksum(result[start:end]))
    return bytes(result)


def checksum(page: bytes) -> int:
    """Ogg's CRC-32 of a page: zlib's polynomial, but highest bit first, from 0.

    zlib goes lowest bit first, from all ones; so it gets the bits of each byte in
    reverse, and its start and end are undone.
    """
    mirrored = zlib.crc32(bytes(page).translate(_REVERSED_BITS), 0xFFFFFFFF)
    return int(f"{mirrored ^ 0xFFFFFFFF:032b}"[::-1], 2)
