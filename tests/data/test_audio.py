"""Audio: bit-exact where it can be, lengths known from headers, and every kind of damage named."""

import io
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from xtremes_jax.data import audio, containers
from xtremes_jax.data.audio import decode, probe
from xtremes_jax.errors import InputError


def noise(frames, channels=1, seed=None):
    rng = np.random.default_rng(seed)
    shape = (frames,) if channels == 1 else (frames, channels)
    return rng.integers(-20000, 20000, shape).astype(np.int16)


def encode(samples, rate=16_000, format="WAV", subtype=None, **more):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype, **more)
    return file.getvalue()


@pytest.mark.parametrize("format", ["WAV", "FLAC", "NIST", "RF64", "AIFF", "AU", "W64", "CAF"])
def test_16_bit_at_16_khz_is_bit_exact(format, tmp_path):
    samples = noise(5003)
    data = encode(samples, format=format, subtype="PCM_16")
    assert probe(data) == audio.AudioInfo(5003, 16_000, 1, 5003, is_float=False)
    path = tmp_path / "clip.bin"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        got = decode(source)
        assert got.dtype == np.int16 and got.flags.c_contiguous
        np.testing.assert_array_equal(got, samples)


def test_channels_are_averaged_and_rounded_once():
    samples = noise(1000, channels=3)
    expected = np.rint(samples.astype(np.float64).mean(axis=1)).astype(np.int16)
    np.testing.assert_array_equal(decode(encode(samples, format="FLAC")), expected)
    assert probe(encode(samples)).channels == 3


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_wider_integers_are_rounded_and_clipped(bits, format):
    if (bits, format) == (32, "FLAC"):
        bits = 24
    rng = np.random.default_rng()
    wide = rng.integers(-(2**31), 2**31, 4000).astype(np.int32) & np.int32(-(2 ** (32 - bits)))
    wide[:2] = 2**31 - 2**8, -(2**31)  # the first rounds up to 32768, which int16 cannot hold
    expected = np.clip(np.rint(wide.astype(np.float64) / 65536), -32768, 32767).astype(np.int16)
    np.testing.assert_array_equal(decode(encode(wide, format=format, subtype=f"PCM_{bits}")), expected)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_float_files_stay_float(subtype):
    samples = np.random.default_rng().normal(0, 0.7, 3000).astype(np.float32)  # beyond 1 as well: not clipped
    data = encode(samples, subtype=subtype)
    got = decode(data)
    assert got.dtype == np.float32 and probe(data).is_float
    np.testing.assert_array_equal(got, samples)


@pytest.mark.parametrize(("bad", "said"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e30, "1e+30")])
def test_samples_that_are_no_sound_are_located(bad, said):
    samples = np.random.default_rng().normal(0, 0.1, (80_000, 2)).astype(np.float32)
    samples[70_001, 1] = bad
    with pytest.raises(InputError, match=rf"70,001 \(at 8\.750 s\) is {said.replace('+', '[+]')},"):
        decode(encode(samples, 8000, subtype="FLOAT"))


RATES = [6000, 8000, 11025, 11127, 12000, 22050, 24000, 32000, 44100, 48000, 96000, 192_000, 15999, 16001]


@pytest.mark.parametrize("rate", RATES)
def test_the_length_at_16_khz_is_known_from_the_header(rate):
    lengths = [1, 2, 3, 5, 147, 441, *np.random.default_rng().integers(10, 60_000, 6), 3 * rate + 1]
    for frames in map(int, lengths):
        data = encode(noise(frames), rate)
        if not audio.num_samples_16k(frames, rate):
            for read in (probe, decode):
                with pytest.raises(InputError, match="shorter than one sample at 16,000 Hz"):
                    read(data)
            continue
        assert probe(data).num_samples_16k == len(decode(data)), (rate, frames)


def test_the_length_formula_holds_for_long_clips():
    for rate in (8000, 11025, 22050, 44100, 48000):
        frames = 40 * rate + int(np.random.default_rng().integers(1000))
        assert audio.num_samples_16k(frames, rate) == len(soxr.resample(np.ones(frames, np.float32), rate, 16_000))


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_resampling_keeps_a_tone(rate):
    seconds = np.arange(2 * rate) / rate
    tone = np.sin(2 * np.pi * 700 * seconds)
    got = decode(encode((20_000 * tone).astype(np.int16), rate))
    expected = 20_000 * np.sin(2 * np.pi * 700 * np.arange(len(got)) / 16_000)
    assert np.abs(got - expected)[800:-800].max() < 3


def test_resampling_clips_instead_of_wrapping():
    square = np.where(np.arange(4000) // 20 % 2, 32767, -32768).astype(np.int16)  # overshoots when band-limited
    got = decode(encode(square, 8000)).astype(int)
    plain = soxr.resample(square.astype(np.float32), 8000, 16_000)
    assert plain.max() > 32767.5 and got.max() == 32767 and got.min() == -32768
    assert np.abs(got - plain.clip(-32768, 32767)).max() <= 1


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_lossy_formats(format, subtype, channels, rate):
    frames = rate + 17
    wave = 9000 * np.sin(2 * np.pi * 440 * np.arange(frames) / rate)
    samples = np.stack([wave] * channels, axis=1) / 32768
    data = encode(samples, rate, format, subtype)
    got = decode(data)
    assert got.dtype == np.int16 and len(got) == probe(data).num_samples_16k == audio.num_samples_16k(frames, rate)
    spectrum = np.abs(np.fft.rfft(got[1000:-1000].astype(float)))
    assert np.argmax(spectrum) == pytest.approx(440 * (len(got) - 2000) / 16_000, abs=1)
    assert np.abs(got[2000:-2000]).max() == pytest.approx(9000, rel=0.15)


@pytest.mark.parametrize("coding", ["ULAW", "ALAW"])
def test_sphere_as_babel_has_it(coding, tmp_path):
    samples = noise(8000 * 5)
    path = tmp_path / "call.sph"
    path.write_bytes(encode(samples, 8000, "NIST", coding))
    whole = soundfile.read(path, dtype="int16")[0]
    got = decode(path, (1.25, 3.5))
    np.testing.assert_array_equal(got, decode(encode(whole[10_000:28_000], 8000)))
    assert probe(path, (1.25, 3.5)).num_samples_16k == len(got) == 36_000


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
def test_segments(format):
    data = encode(noise(16_000 * 3), format=format)
    whole = decode(data)
    np.testing.assert_array_equal(decode(data, (0.5, 1.25)), whole[8000:20_000])
    np.testing.assert_array_equal(decode(data, (2.0, 3.4)), whole[32_000:])  # time stamps a little past the end
    for wrong in [(1.0, 1.0), (2.0, 1.0), (-0.5, 1.0), (3.0, 3.5), (1.0, 4.5), (1.0, 1.00001), (np.nan, 1.0)]:
        for read in (probe, decode):
            with pytest.raises(InputError, match="segment"):
                read(data, wrong)


def strip_first_mp3_frame(data):
    """LAME puts the tag into a frame of its own, at the start; the next starts with the same sync."""
    return data[data.index(data[:2], 4) :]


@pytest.mark.parametrize("id3", [b"", b"ID3\x03\x00\x00\x00\x00\x02\x00" + bytes(256)])
@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_without_a_length_tag_is_read_to_its_end(rate, channels, id3):
    samples = noise(5 * rate, channels)
    samples[rate * 2 :] //= 200  # quiet for most of the time: a variable rate whose first frames mislead
    tagged = encode(samples, rate, "MP3", bitrate_mode="VARIABLE")
    bare = id3 + strip_first_mp3_frame(tagged)
    assert b"Xing" not in bare
    reference, got = decode(tagged), decode(bare)
    assert len(got) == probe(bare).num_samples_16k
    # The tag also holds the encoder's delay: without it up to two frames of silence remain.
    assert 0 <= len(got) - len(reference) <= 2 * 1152 * 16_000 // rate + 1000
    if rate == 16_000:
        delay = np.argmin([np.abs(got[d : d + 4000].astype(int) - reference[:4000]).max() for d in range(1500)])
        np.testing.assert_allclose(got[delay : delay + len(reference)], reference, atol=1)


LOSSLESS_OR_NOT = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("NIST", "PCM_16"), ("NIST", "ULAW"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
    ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "subtype"), LOSSLESS_OR_NOT)
@pytest.mark.parametrize("kept", [0.37, 0.9])
def test_truncated_files_are_refused_by_both(format, subtype, kept, tmp_path):
    data = encode(noise(48_000, seed=3), format=format, subtype=subtype)
    probe(data), decode(data)
    cut = data[: int(len(data) * kept)]
    path = tmp_path / "cut"
    path.write_bytes(cut)
    for read in (probe, decode):
        for source in (cut, path):
            with pytest.raises(InputError, match="truncated|damaged"):
                read(source)


def test_a_wav_written_to_a_pipe_states_no_size_and_is_fine():
    samples = noise(4000)
    data = bytearray(encode(samples))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    np.testing.assert_array_equal(decode(bytes(data)), samples)


JUNK = [
    b"RIFF", b"not audio at all", b"\x00" * 5000, b"{'a': 1}" * 99, b"OggS" * 20, b"ID3", b"\xff\xfb\x90\x64",
    b"NIST_1A\n", b"NIST_1A\n   1024\nsample_count -i many\n",
]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK)
def test_what_is_no_audio_is_refused(junk, tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(junk)
    for read in (probe, decode):
        with pytest.raises(InputError):
            read(junk)
        with pytest.raises(InputError, match="clip.wav: it"):
            read(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for read in (probe, decode):
        with pytest.raises(InputError, match="pipe.wav: it is a pipe or a device"):
            read(tmp_path / "pipe.wav")
        with pytest.raises(InputError, match="/dev/zero: it is a pipe or a device"):
            read("/dev/zero")
        with pytest.raises(InputError, match="cannot be read: .*null"):
            read("nu\0ll.wav")
        with pytest.raises(InputError, match="cannot be read: File name too long"):
            read("n" * 300)


def test_a_wav_of_empty_chunks_is_not_walked_to_its_end():
    class Counted(io.BytesIO):
        reads = 0

        def read(self, *size):
            self.reads += 1
            return super().read(*size)

    data = b"RIFF\xff\xff\xff\x00WAVE" + bytes(8 * 50_000)
    stream = Counted(data)
    with pytest.raises(InputError, match="do not start within 10,000 chunks"):
        containers._check_wav(stream, len(data))
    assert stream.reads <= 10_000
    with pytest.raises(InputError, match="do not start within"):
        decode(data)


def test_an_mp3_file_is_read_whole_only_where_it_lacks_its_length(tmp_path, monkeypatch):
    tagged = encode(noise(30_000), format="MP3", bitrate_mode="VARIABLE")
    picture = b"ID3\x03\x00\x00\x00\x00\x40\x00" + bytes(8192)  # a tag longer than what is read of the head
    contents = {"tagged": tagged, "picture": picture + tagged, "bare": picture + strip_first_mp3_frame(tagged)}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    whole = []
    monkeypatch.setattr(audio.Path, "read_bytes", lambda path, plain=Path.read_bytes: whole.append(path) or plain(path))
    for name, data in contents.items():
        np.testing.assert_array_equal(decode(tmp_path / name), decode(data))
    assert whole == [tmp_path / "bare"]


def test_missing_and_empty_files(tmp_path):
    (tmp_path / "empty.flac").touch()
    for read in (probe, decode):
        with pytest.raises(InputError, match=r"empty \(0 bytes\)"):
            read(b"")
        with pytest.raises(InputError, match=r"empty.flac: it is empty"):
            read(tmp_path / "empty.flac")
        with pytest.raises(InputError, match=r"gone.wav: it cannot be read: No such file"):
            read(tmp_path / "gone.wav")
        with pytest.raises(InputError, match="cannot be read: Is a directory"):
            read(tmp_path)
        with pytest.raises(InputError, match="holds no samples"):
            read(encode(np.empty(0, np.int16)))


def test_a_compressed_sphere_file_says_what_to_do():
    header = b"NIST_1A\n   1024\nsample_count -i 9\nsample_coding -s26 ulaw,embedded-shorten-v2.00\nend_head\n"
    with pytest.raises(InputError, match="sph2pipe"):
        probe(header.ljust(2048, b"\0"))


def flac_that_claims(frames):
    """The header's 36-bit count of samples, overwritten."""
    data = bytearray(encode(noise(20_000), format="FLAC"))
    count = int.from_bytes(data[21:26], "big") & ~(2**36 - 1) | frames
    data[21:26] = count.to_bytes(5, "big")
    return bytes(data)


def test_lying_headers_cost_no_memory():
    assert len(decode(flac_that_claims(20_000))) == 20_000
    for frames in (20_001, 3000 * 16_000, 2**36 - 1):
        for read in (probe, decode):
            with pytest.raises(InputError, match="truncated|damaged|broken|long"):
                read(flac_that_claims(frames))


def test_an_hour_is_too_long_for_a_clip_but_not_for_a_recording(monkeypatch):
    monkeypatch.setattr(audio, "MAX_SECONDS", 2.0)
    data = encode(noise(16_000 * 3))
    for read in (probe, decode):
        with pytest.raises(InputError, match="3 s long; at most 2 s"):
            read(data)
    assert len(decode(data, (0.5, 2.5))) == probe(data, (0.5, 2.5)).frames == 32_000


@pytest.mark.parametrize("rate", [1, 1999, 1_000_000])
def test_sample_rates_that_no_recording_has(rate):
    for read in (probe, decode):
        with pytest.raises(InputError, match=f"{rate} samples a second"):
            read(encode(noise(5000), rate))


def test_blocks_join_without_a_seam(monkeypatch):
    samples = noise(16_000 * 5 + 123, channels=2)
    whole = decode(encode(samples, 44_100))
    monkeypatch.setattr(audio, "_BLOCK_SECONDS", 1)
    np.testing.assert_array_equal(decode(encode(samples, 44_100)), whole)


@pytest.mark.parametrize(("format", "subtype"), LOSSLESS_OR_NOT)
def test_random_damage_is_refused_or_survived(format, subtype):
    """Never another exception, never a length other than the header's."""
    rng = np.random.default_rng()
    data = encode(noise(9000), format=format, subtype=subtype)
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        where = rng.integers(0, len(damaged) if rng.random() < 0.3 else 120, rng.integers(1, 8))
        damaged[where] = rng.integers(0, 256, len(where))
        try:
            info = probe(damaged.tobytes())
            samples = decode(damaged.tobytes())
        except InputError:
            continue
        assert len(samples) == info.num_samples_16k


IN_MEMORY = [
    ("WAV", "PCM_16", 16_000, 1), ("WAV", "PCM_16", 16_000, 2), ("FLAC", "PCM_16", 8000, 1),
    ("WAV", "FLOAT", 16_000, 1), ("WAV", "FLOAT", 22_050, 1), ("WAV", "PCM_24", 16_000, 1),
    ("MP3", "MPEG_LAYER_III", 48_000, 1), ("OGG", "OPUS", 16_000, 1),
]  # fmt: skip


@pytest.mark.parametrize(("format", "subtype", "rate", "channels"), IN_MEMORY)
def test_a_clip_stays_as_it_is_when_its_thread_decodes_others(format, subtype, rate, channels, monkeypatch):
    clips = [encode(noise(frames, channels), rate, format, subtype) for frames in (9000, 12_000, 700)]
    first = decode(clips[0])
    kept = first.copy()
    others = [decode(clip) for clip in clips[1:]]
    np.testing.assert_array_equal(first, kept)
    with ThreadPoolExecutor(4) as pool:
        for clip, expected in zip(clips * 8, pool.map(decode, clips * 8), strict=True):
            np.testing.assert_array_equal(decode(clip), expected)
    monkeypatch.setattr(audio, "_KEPT_BYTES", 0)
    for clip, samples in zip(clips, [first, *others], strict=True):
        np.testing.assert_array_equal(decode(clip), samples)


# Not MP3 and Opus: soundfile seeks after each read, and their decoders then begin without the frames before.
@pytest.mark.parametrize(
    ("format", "subtype", "rate", "channels"), [kind for kind in IN_MEMORY if kind[0] in ("WAV", "FLAC")]
)
def test_mono_blocks_join_without_a_seam(format, subtype, rate, channels, monkeypatch):
    data = encode(noise(3 * rate + 123, channels), rate, format, subtype)
    whole = decode(data)
    monkeypatch.setattr(audio, "_BLOCK_SECONDS", 1)
    np.testing.assert_array_equal(decode(data), whole)


@pytest.mark.parametrize(("format", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
@pytest.mark.parametrize("channels", [1, 2])
def test_lossy_formats_lose_no_more_in_single_precision(format, subtype, channels):
    data = encode(noise(20_000, channels), 16_000, format, subtype)
    exact = soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)[0].mean(axis=1) * 32768
    np.testing.assert_array_equal(decode(data), np.clip(np.rint(exact), -32768, 32767))
