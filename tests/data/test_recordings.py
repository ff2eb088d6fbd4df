"""Long recordings in pieces and in windows: the samples of a whole decode, and damage named in its place."""

import io

import numpy as np
import pytest
import soundfile

from xtremes_jax.data import audio
from xtremes_jax.data.recordings import Recording, pad_windows, read_windows
from xtremes_jax.errors import InputError


def encode(samples, rate, format="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("seconds", [0.7, 130.3])
@pytest.mark.parametrize(
    ("rate", "channels", "format", "subtype"),
    [(16_000, 1, "FLAC", None), (8_000, 1, "WAV", "ULAW"), (44_100, 2, "WAV", "FLOAT"), (22_050, 1, "MP3", None)],
)
def test_pieces_are_what_a_whole_decode_gives(rng, rate, channels, format, subtype, seconds):
    samples = rng.normal(0, 0.1, (round(seconds * rate), channels)).astype(np.float32)
    data = encode(samples, rate, format, subtype)
    pieces = list(audio.decode_pieces(data))
    np.testing.assert_array_equal(np.concatenate(pieces), audio.decode(data))
    assert sum(map(len, pieces)) == audio.probe(data, in_pieces=True).num_samples_16k
    assert (len(pieces) > 2) == (seconds > 100) and max(map(len, pieces)) < 61 * 16_000
    part = (0.1, 0.5)
    np.testing.assert_array_equal(np.concatenate(list(audio.decode_pieces(data, part))), audio.decode(data, part))


def test_what_is_read_in_pieces_may_be_of_any_length(monkeypatch):
    monkeypatch.setattr(audio, "MAX_SECONDS", 2.0)
    monkeypatch.setattr(audio, "MAX_VALUES", 20_000)
    data = encode(np.ones(16_000 * 3, np.int16), 16_000)
    with pytest.raises(InputError, match=r"it is 3 s long; at most 2 s can be one clip. Cut it, or .*chunk_length_s"):
        audio.probe(data)
    with pytest.raises(InputError, match=r"24,000 samples .* mix its channels down, or transcribe it in windows"):
        audio.decode(encode(np.ones((12_000, 2), np.int16), 16_000))
    assert audio.probe(data, in_pieces=True).num_samples_16k == sum(map(len, audio.decode_pieces(data))) == 48_000


def cut(samples, sizes):
    """What opens samples as pieces of these sizes, the rest last."""
    return lambda: iter(np.split(samples, np.cumsum(sizes)))


def test_windows_are_stretches_of_the_recording(rng):
    recordings, everything = [], []
    for dtype in (np.int16, np.float32, np.int16):
        samples = rng.integers(-999, 999, rng.integers(900, 1200)).astype(dtype)
        starts = range(0, len(samples) - 90, 70)
        windows = [(start, start + 100) for start in starts[:-1]] + [(starts[-1], len(samples))]
        recordings.append(Recording(len(samples), cut(samples, rng.integers(0, 200, 5)), windows))
        everything.append(samples)
    places = [(number, place) for number, one in enumerate(recordings) for place in range(len(one.windows))]
    for wanted in (places, [places[index] for index in sorted(rng.choice(len(places), 9, replace=False))]):
        wanted = [*wanted[:4], None, *wanted[4:], None]
        found = list(read_windows(recordings, wanted))
        assert len(found) == len(wanted)
        for place, window in zip(wanted, found, strict=True):
            if place is None:
                assert window is None
                continue
            start, stop = recordings[place[0]].windows[place[1]]
            np.testing.assert_array_equal(window, everything[place[0]][start:stop])
            assert window.dtype == everything[place[0]].dtype


def test_a_recording_that_breaks_off_is_told_of_from_there_on():
    samples = np.arange(1000, dtype=np.int16)

    def broken():
        yield samples[:250]
        raise InputError("it is corrupt")

    windows = [(start, start + 100) for start in range(0, 1000, 100)]
    recordings = [Recording(1000, broken, windows), Recording(1000, cut(samples, [9]), windows)]
    found = list(read_windows(recordings, [(number, place) for number in (0, 1) for place in range(10)]))
    assert [isinstance(window, InputError) for window in found] == [False] * 2 + [True] * 8 + [False] * 10
    assert str(found[2]) == str(found[9]) == "it is corrupt"


@pytest.mark.parametrize("stop", [1000, 985])
@pytest.mark.parametrize("there", [990, 1017])
def test_a_file_that_is_not_as_long_as_its_header_said_is_told_of(there, stop):
    """Also where the last samples are too few for another frame, so that no window reaches them."""
    recordings = [Recording(1000, cut(np.zeros(there, np.int16), [300]), [(0, 600), (500, stop)])]
    found = list(read_windows(recordings, [(0, 0), (0, 1)]))
    assert len(found[0]) == 600
    assert str(found[1]).startswith(f"decoded to {there} samples although its header promised 1000: the file changed")


def test_an_error_of_the_file_system_is_told_of():
    def gone():
        raise OSError("no such file")
        yield

    (found,) = read_windows([Recording(10, gone, [(0, 10)])], [(0, 0)])
    assert isinstance(found, InputError) and str(found) == "no such file"


def test_rows_are_padded_and_of_one_type():
    windows = [np.array([1, 2], np.int16), None, InputError("x"), np.array([0.5, -0.5, 0.25], np.float32)]
    rows, lengths = pad_windows(windows, 4, np.float32)
    assert lengths.tolist() == [2, 0, 0, 3] and lengths.dtype == np.int32
    np.testing.assert_array_equal(rows[[0, 3]], [[1 / 32768, 2 / 32768, 0, 0], [0.5, -0.5, 0.25, 0]])
    assert not rows[1:3].any() and rows.dtype == np.float32
