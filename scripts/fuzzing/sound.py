"""Hostile audio, and hostile copies of the durations that a run keeps."""

import io
import math
from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np
import soundfile

from fuzzing.mutate import NUMBERS, change_bytes, json_bytes
from fuzzing.reader import Place, Reader, require
from xtremes_jax.data import audio

_SHORT = (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAV", "ULAW"), ("WAV", "MS_ADPCM"),
          ("WAV", "IMA_ADPCM"), ("WAV", "GSM610"), ("WAVEX", "PCM_24"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"),
          ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("NIST", "PCM_16"), ("NIST", "ULAW"),
          ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("W64", "PCM_16"),
          ("RF64", "PCM_16"), ("IRCAM", "PCM_16"), ("VOC", "PCM_16"), ("SVX", "PCM_16"))  # fmt: skip
_M4A = (
    bytes.fromhex("00000020667479704d344120000002004d34412069736f6d69736f3200000000") + b"\0\0\x03\xf8moov\0\0\0lmvhd"
)
_ALIEN = (
    _M4A + b"\0" * 400, b"#!AMR\n" + b"\x3c" * 320, b"\x1aE\xdf\xa3" + b"\x42" * 300, b"RIFF\xff\xff\xff\xffAVI LIST",
    b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    b"PK\x03\x04" + b"\0" * 99,
    b"ID3\x03\0\0\x7f\x7f\x7f\x7f", b"ID3" + b"\xff" * 20, b"\0" * 5000, b"\xff\xfb" * 3000, b"fLaC", b"OggS" * 2000,
)  # fmt: skip


@cache
def _clip(kind: str, subtype: str, rate: int, channels: int) -> bytes:
    """A fifth of a second of noise and tone."""
    count = rate // 5
    time = np.arange(count) / rate
    wave = 0.4 * np.sin(2 * math.pi * 330 * time) + 0.05 * np.random.default_rng(rate).standard_normal(count)
    stream = io.BytesIO()
    soundfile.write(stream, np.stack([wave] * channels, axis=1), rate, format=kind, subtype=subtype)
    return stream.getvalue()


@cache
def _silence(seconds: int, rate: int, channels: int) -> bytes:
    """FLAC of nothing: a few bytes for each block of samples."""
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, channels, format="FLAC", subtype="PCM_16") as file:
        block = np.zeros((rate, channels), np.int16)
        for _ in range(seconds):
            file.write(block)
    return stream.getvalue()


def _valid(random: Random) -> bytes:
    while True:
        kind, subtype = random.choice(_SHORT)
        rate, channels = random.choice((8000, 16_000, 22_050, 44_100, 48_000)), random.choice((1, 1, 2))
        try:
            return _clip(kind, subtype, rate, channels)
        except (soundfile.LibsndfileError, ValueError):  # not every codec takes every rate and number of channels
            continue


def _lying_wav(random: Random) -> bytes:
    """A WAV header whose fields claim anything, and a few samples."""
    rate = random.choice((0, 1, 8000, 16_000, 48_000, 768_000, 2**31 - 1, 2**32 - 1))
    channels, bits = random.choice((0, 1, 2, 8, 255, 1024, 65_535)), random.choice((0, 1, 8, 16, 24, 32, 64, 65_535))
    kind = random.choice((0, 1, 2, 3, 6, 7, 17, 49, 85, 0xFFFE, 0xFFFF))
    rates = [(rate, 4), (rate * channels * bits // 8 % 2**32, 4)]
    fields = [(kind, 2), (channels, 2), *rates, (random.choice((0, 1, 2, 4, 65_535)), 2), (bits, 2)]
    chunk = b"".join(value.to_bytes(size, "little") for value, size in fields)
    claimed = random.choice((*NUMBERS, 3200)) % 2**32
    body = random.randbytes(random.choice((0, 1, 3200, 64_000)))
    whole = (36 + random.choice((len(body), claimed))) % 2**32
    return (b"RIFF" + whole.to_bytes(4, "little") + b"WAVEfmt " + len(chunk).to_bytes(4, "little") + chunk
            + random.choice((b"", b"fact\4\0\0\0\xff\xff\xff\xff")) + b"data"
            + claimed.to_bytes(4, "little") + body)  # fmt: skip


def _lying_flac(random: Random) -> bytes:
    """FLAC whose STREAMINFO claims another rate, more channels, or up to 2 ** 36 samples."""
    data = bytearray(_clip("FLAC", "PCM_16", 16_000, 1))
    word = int.from_bytes(data[18:26], "big")  # rate (20 bits), channels - 1 (3), bits - 1 (5), samples (36)
    samples = random.choice((0, 1, 3200, 3600 * 16_000, 3600 * 16_000 + 1, 2**36 - 1, word & (2**36 - 1)))
    rate = random.choice((16_000, 16_000, 1, 655_350, 2**20 - 1))
    word = rate << 44 | random.choice((0, 0, 1, 7)) << 41 | (word >> 36 & 31) << 36 | samples
    data[18:26] = word.to_bytes(8, "big")
    return bytes(data)


def _lying_sphere(random: Random) -> bytes:
    """A NIST SPHERE header with fields of any value, missing, or doubled."""
    lines = ["NIST_1A", random.choice(("   1024", "9" * 30, "-1", "x", "   8"))]
    for name, values in {
        "sample_count": (3200, 0, -1, 10**15, "1e9", "9" * 5000), "sample_rate": (16_000, 8000, 0, -1, 10**12),
        "channel_count": (1, 2, 0, 10**9), "sample_n_bytes": (2, 1, 0, -1, 4, 10**9),
        "sample_coding": ("pcm", "ulaw", "pcm,embedded-shorten-v2.00", ""), "sample_byte_format": ("01", "10", "99"),
    }.items():  # fmt: skip
        for _ in range(random.choice((1, 1, 1, 0, 2))):
            value = random.choice(values) if random.random() < 0.4 else values[0]
            lines.append(f"{name} {'-i' if isinstance(value, int) else '-s9'} {value}")
    text = "\n".join([*lines, random.choice(("end_head", "", "end_head" * 50)), ""])
    return text.encode().ljust(1024, b" ") + random.randbytes(6400)


def _lying_mp3(random: Random) -> bytes:
    """MP3 whose length tag claims any number of frames, or one without a tag and with frames of any kind."""
    data = bytearray(_clip("MP3", "MPEG_LAYER_III", random.choice((16_000, 44_100)), 1))
    tag = max(data.find(b"Xing"), data.find(b"Info"))
    if tag >= 0 and random.random() < 0.6:
        number = random.choice(NUMBERS) % 2**32
        data[tag + 4 : tag + 12] = (3).to_bytes(4, "big") + number.to_bytes(4, "big")
    elif tag >= 0:
        data[tag : tag + 4] = b"\0\0\0\0"
    return bytes(data) * random.choice((1, 1, 3))


def _bomb(random: Random) -> bytes:
    """A small file that holds an hour, or very many samples a second."""
    return _silence(*random.choice(((3600, 16_000, 1), (3601, 16_000, 1), (65, 192_000, 8), (19, 655_350, 8))))


_MAKERS: tuple[tuple[float, Callable[[Random], bytes]], ...] = (
    (0.54, lambda random: change_bytes(random, _valid(random))),
    (0.05, _valid),
    (0.12, _lying_wav),
    (0.08, _lying_flac),
    (0.07, _lying_sphere),
    (0.06, _lying_mp3),
    (0.05, lambda random: random.choice(_ALIEN)),
    (0.02, lambda random: change_bytes(random, random.choice(_ALIEN))),
    (0.01, _bomb),
)


def hostile_audio(random: Random) -> bytes:
    """The contents of one file."""
    shares, makers = zip(*_MAKERS, strict=True)
    return random.choices(makers, shares)[0](random)


def _make_audio(random: Random, place: Place) -> None:
    (place.folder / "clip.wav").write_bytes(hostile_audio(random))


def _read_audio(random: Random, place: Place) -> None:
    path = place.folder / "clip.wav"
    segment = random.choice((*[None] * 9, (0.0, 0.1), (0.05, 0.15), (0.05, 10.0), (0.0, 1e308), (-1.0, 1.0),
                             (float("nan"), 1.0),                             (3599.0, 3600.0)))  # fmt: skip
    source = path if random.random() < 0.7 else path.read_bytes()
    if source is not path:
        check_audio(source, segment, named=str(path))
    else:
        check_audio(path, segment)


def check_audio(source: audio.Source, segment: audio.Segment | None, named: str | None = None) -> None:
    """Probes and decodes; the two have to agree, and the samples have to be sound.

    Args:
        source, segment: as `audio.decode` takes them.
        named: what a refusal of bytes, which have no name, is put behind, as the package's own callers do.
    """
    from xtremes_jax.errors import InputError

    try:
        info = audio.probe(source, segment)
        samples = audio.decode(source, segment)
    except InputError as error:
        if named is None:
            raise
        raise InputError(f"{named}: {error}") from error
    require(samples.ndim == 1 and len(samples) == info.num_samples_16k, (samples.shape, info))
    require(0 < len(samples) <= audio.MAX_SECONDS * 16_000 + 1, info)
    require(samples.dtype == (np.float32 if info.is_float else np.int16), (samples.dtype, info))
    require(bool(np.isfinite(samples).all()), "samples are not finite")


_CLIPS = 3


def _make_durations(random: Random, place: Place) -> None:
    for number in range(_CLIPS):
        (place.folder / f"{number}.flac").write_bytes(_clip("FLAC", "PCM_16", 16_000, 1))
    files = [[str(place.folder / f"{number}.flac"), [1000, 5]] for number in range(_CLIPS)]
    kept = {"num_samples": [3200] * _CLIPS, "float_rows": [], "reasons": {"1": "it is empty"}, "files": files,
            "file_of_row": [[row, row] for row in range(_CLIPS)]}  # fmt: skip
    (place.folder / "kept.json").write_bytes(json_bytes(random, kept))


def _read_durations(random: Random, place: Place) -> None:
    """As though an earlier run had left the file; what cannot be used is read again, and never fatal."""
    import datasets

    from xtremes_jax.data import durations
    from xtremes_jax.data.sources import RawSplit

    names = [str(place.folder / f"{number}.flac") for number in range(_CLIPS)]
    table = datasets.Dataset.from_dict({"audio": names}).cast_column("audio", datasets.Audio(decode=False))
    raw = RawSplit("train", table, "audio", None, ["xx"] * _CLIPS, names, None)
    cache = place.root / "tmp" / "kept"
    target = cache / "durations" / f"{durations._key(raw)}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((place.folder / "kept.json").read_bytes())
    found = durations.read_durations(raw, cache_dir=cache, num_workers=1, show_progress=False)
    durations.fingerprint(raw, found, np.arange(_CLIPS))
    require(found.num_samples.shape == (_CLIPS,) and found.num_samples.dtype == np.int64, found)
    require(bool((found.num_samples >= 0).all()), found)
    require(found.is_float.shape == (_CLIPS,), found)
    require(all(row in range(_CLIPS) and isinstance(why, str) for row, why in found.reasons.items()), found)


READERS = {
    "audio": Reader("audio", _make_audio, _read_audio),
    "durations": Reader("durations", _make_durations, _read_durations),
}
