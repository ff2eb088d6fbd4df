"""MP3 files that do not say how long they are.

libsndfile guesses the length of an MP3 file without a Xing or Info tag from its size and its first frame, and never
reads past the guess: of a file with a variable bit rate it silently drops the rest. Here such a file is measured, by
walking its frame headers, and given the tag that it lacks.
"""

import itertools
from typing import BinaryIO

_KBPS = {  # by (MPEG version 1?, layer III): ISO/IEC 11172-3 and 13818-3
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HERTZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_TAG_BYTES = 16  # name, flags, number of frames, number of bytes
_WINDOW = 4096  # bytes that hold the first frame (at most 1441) and the head of the second


def may_be_mp3(head: bytes) -> bool:
    """Whether a file that starts with these bytes may be MP3: an ID3 tag, or a frame of layer III."""
    return head[:3] == b"ID3" or _frame_bytes(head, 0) is not None


def lacks_length(stream: BinaryIO) -> bool:
    """Whether this is an MP3 file without a length tag; reads no more than its first frame."""
    stream.seek(0)
    stream.seek(_skip_id3(stream.read(10)))
    return _lacks_length(stream.read(_WINDOW))


def with_length_header(data: bytes) -> bytes:
    """`data` itself, unless it is an MP3 file without a length tag: then with such a tag in front.

    Anything that is not clearly MPEG layer III is returned untouched, for libsndfile to judge.
    """
    first = _skip_id3(data)
    if not _lacks_length(data[first : first + _WINDOW]):
        return data
    count, position = 0, first
    while (length := _frame_bytes(data, position)) is not None and position + length <= len(data):
        count, position = count + 1, position + length
    return data[:first] + _tag(data, first, count, position - first) + data[first:]


def _lacks_length(frames: bytes) -> bool:
    """Whether these bytes start with two frames of layer III, the first of them without a length tag."""
    if _frame_bytes(frames, 0) is None or not _frame_follows(frames, 0):
        return False
    body = 4 + _side_bytes(frames, 0)
    return frames[body : body + 4] not in (b"Xing", b"Info") and frames[36:40] != b"VBRI"


def _skip_id3(data: bytes) -> int:
    """Where the frames start: past an ID3v2 tag, whose size is 4 times 7 bits."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    return 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])


def _frame_bytes(data: bytes, at: int) -> int | None:
    """Length of the layer III frame whose header is at that byte; None if there is none (or its rate is "free")."""
    header = data[at : at + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # 11 bits of sync, then layer III
        return None
    version, kbps, hertz = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or kbps in (0, 15) or hertz == 3:
        return None
    slots = 144_000 if version == 3 else 72_000
    return slots * _KBPS[version == 3][kbps] // _HERTZ[version][hertz] + (header[2] >> 1 & 1)


def _frame_follows(data: bytes, at: int) -> bool:
    """Other formats may start like a frame by chance, but not two in a row."""
    following = at + (_frame_bytes(data, at) or 0)
    return following >= len(data) or _frame_bytes(data, following) is not None


def _side_bytes(data: bytes, at: int) -> int:
    """Bytes of side information, which a tag comes after: by MPEG version and channels."""
    mono, version_1 = data[at + 3] >> 6 == 3, data[at + 1] >> 3 & 3 == 3
    return {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}[version_1, mono]


def _tag(data: bytes, at: int, frames: int, size: int) -> bytes:
    """A silent frame with a Xing tag: the frame at `at`, but with the least bit rate whose frames hold the tag."""
    side = _side_bytes(data, at)
    for kbps in itertools.count(1):
        # The second byte's last bit: no checksum. The third byte: bit rate, sample rate kept, no padding.
        header = bytes([0xFF, data[at + 1] | 1, kbps << 4 | data[at + 2] & 0x0C, data[at + 3]])
        length = _frame_bytes(header, 0)
        if length >= 4 + side + _TAG_BYTES:
            break
    content = b"Xing" + (3).to_bytes(4, "big") + frames.to_bytes(4, "big") + (size + length).to_bytes(4, "big")
    return (header + bytes(side) + content).ljust(length, b"\0")
