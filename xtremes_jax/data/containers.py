"""Files of audio that are cut off: libsndfile reads a cut WAV, SPHERE or OGG file without a word, as a shorter one."""

from typing import BinaryIO

from xtremes_jax.errors import InputError

_SLACK_BYTES = 64  # writers disagree about padding; a few samples less than promised is no damage
_MAX_CHUNKS = 10_000  # of a WAV file before its samples: a few are usual, and a file of zeros would be millions
_STREAMING_SIZE = 0x7FFF0000  # what programs that cannot go back to write the true size put there, and more


def check_container(head: bytes, stream: BinaryIO, size: int) -> None:
    """Compares what the header of a WAV, SPHERE or OGG file promises with the bytes that are there; others pass.

    Args:
        head: The first kilobyte of the file.
        stream: All of it.
        size: In bytes.

    Raises:
        InputError: It is cut off, or a header is broken.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        _check_wav(stream, size)
    elif head[:8] == b"NIST_1A\n":
        _check_sphere(head, size)
    elif head[:4] == b"OggS":
        _check_ogg(stream, size)


def _check_wav(stream: BinaryIO, size: int) -> None:
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > size:
            return
        stream.seek(position)
        header = stream.read(8)
        length = int.from_bytes(header[4:], "little")
        position += 8
        if header[:4] == b"data":
            if length < _STREAMING_SIZE:
                _require_bytes(length, size - position)
            return
        position += length + length % 2
    raise InputError(f"it is damaged: its samples do not start within {_MAX_CHUNKS:,} chunks")


def _check_sphere(head: bytes, size: int) -> None:
    lines = [line.split(None, 2) for line in head.decode("ascii", "replace").splitlines()]
    fields = {line[0]: line[2] for line in lines if len(line) == 3}
    if "shorten" in fields.get("sample_coding", ""):
        raise InputError("it is a SPHERE file compressed with shorten: convert it first (sph2pipe -p -f wav IN OUT)")
    try:
        width = int(fields.get("sample_n_bytes", "1")) * int(fields.get("channel_count", "1"))
        promised = int(fields.get("sample_count", "0")) * width
        header_size = int(lines[1][0])
    except (ValueError, IndexError) as error:
        raise InputError(f"its SPHERE header is broken ({error})") from error
    _require_bytes(promised, size - header_size)


def _check_ogg(stream: BinaryIO, size: int) -> None:
    stream.seek(max(0, size - 65_307))  # the longest page there can be
    tail = stream.read()
    page = tail.rfind(b"OggS")
    segments = tail[page + 27 : page + 27 + tail[page + 26]] if 0 <= page < len(tail) - 27 else b""
    if page < 0 or not segments or page + 27 + len(segments) + sum(segments) > len(tail):
        raise InputError("it is truncated: its last page is incomplete")


def _require_bytes(promised: int, there: int) -> None:
    if promised > there + _SLACK_BYTES:
        raise InputError(f"it is truncated: {promised:,} bytes of samples were promised, {max(0, there):,} are there")
