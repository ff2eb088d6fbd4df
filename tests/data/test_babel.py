"""BABEL from directories in the LDC's layout: SPHERE audio, time-stamped transcripts, the benchmark's splits."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from xtremes_jax.arguments import DataArguments
from xtremes_jax.data.audio import decode
from xtremes_jax.data.babel import clean_tags, find_packages, read_transcript
from xtremes_jax.data.sources import SplitRequest, load_splits
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import select_task

SWAHILI = "IARPA_BABEL_OP2_202_LDC2017S05/IARPA_BABEL_OP2_202"
LAO = "IARPA_Babel_203_LDC2017S08/IARPA_BABEL_OP2_203"


def sphere(samples: np.ndarray, coding: str) -> bytes:
    """A NIST SPHERE file as the LDC writes them: a header of 1,024 bytes, then samples at 8 kHz."""
    width = samples.dtype.itemsize
    header = [
        "NIST_1A", "   1024", "conversation_id -s24 BABEL_OP2_202_10002_2013", "channel_count -i 1",
        f"sample_count -i {len(samples)}", "sample_rate -i 8000", f"sample_n_bytes -i {width}",
        f"sample_sig_bits -i {8 * width}", f"sample_byte_format -s{width} {'1' if width == 1 else '01'}",
        f"sample_coding -s{len(coding)} {coding}", "end_head", "",
    ]  # fmt: skip
    return "\n".join(header).encode().ljust(1024) + samples.tobytes()


def expand(codes: np.ndarray) -> np.ndarray:
    """G.711 mu-law codes as 16-bit PCM, by the formula of the standard."""
    codes = ~codes.astype(np.uint8)
    exponent, mantissa = (codes >> 4) & 7, (codes & 15).astype(np.int32)
    magnitude = (((mantissa << 3) + 132) << exponent) - 132
    return np.where(codes & 128, -magnitude, magnitude).astype(np.int16)


def write(package: Path, folder: str, name: str, audio: bytes, lines: list[str], suffix: str = ".sph") -> None:
    base = package / "conversational" / folder
    for kind, file, data in (
        ("audio", name + suffix, audio), ("transcription", f"{name}.txt", "\n".join([*lines, ""]).encode()),
    ):  # fmt: skip
        (base / kind).mkdir(parents=True, exist_ok=True)
        (base / kind / file).write_bytes(data)


def write_package(package: Path, rng, recordings: int) -> dict[str, np.ndarray]:
    """`recordings` training files and one dev file, two segments each; gives the PCM of every recording."""
    truth = {}
    for number in range(recordings + 1):
        name, folder = f"BABEL_{number:03}_inLine", "training" if number < recordings else "dev"
        codes = rng.integers(0, 256, 8_000, dtype=np.uint8)
        truth[name] = expand(codes)
        lines = ["[0.000]", "<no-speech>", "[0.250]", f"moja {number} <laugh> mbili", "[0.500]", f"tatu {number}",
                 "[0.875]", "(())", "[1.000]"]  # fmt: skip
        write(package, folder, name, sphere(codes, "ulaw"), lines)
    return truth


def load(data_dir, splits=("train", "validation", "test"), language="sw", **flags):
    data = DataArguments(data_dir=data_dir and str(data_dir), task="babel", language=language, **flags)
    selection = select_task(task="babel", language=language)
    return load_splits(data, selection, {split: SplitRequest(split) for split in splits})


def test_segments_are_cut_where_the_time_stamps_say(tmp_path, rng):
    truth = write_package(tmp_path / SWAHILI, rng, 10)
    splits = load(tmp_path)
    assert [len(split) for split in splits.values()] == [18, 2, 2]
    assert splits["train"].clip_names[:2] == ["BABEL_000_inLine_1", "BABEL_000_inLine_2"]
    assert splits["validation"].targets() == ["moja 9 mbili", "tatu 9"]
    assert splits["test"].targets() == ["moja 10 mbili", "tatu 10"] and set(splits["test"].languages) == {"sw"}
    for split in splits.values():
        for row, name in enumerate(split.clip_names):
            start, end = ((0.25, 0.5), (0.5, 0.875))[row % 2]
            assert split.segment(row) == (start, end)
            path = split.audio(row)
            assert path.name == f"{name[:-2]}.sph"
            samples, rate = soundfile.read(path, start=round(start * 8000), stop=round(end * 8000), dtype="int16")
            assert rate == 8000
            np.testing.assert_array_equal(samples, truth[name[:-2]][round(start * 8000) : round(end * 8000)])
            assert len(decode(path, split.segment(row))) == (end - start) * 16_000


def test_pcm_spheres_and_wav_files_are_read_too(tmp_path, rng):
    package = tmp_path / SWAHILI
    samples = rng.integers(-20_000, 20_000, 8_000, dtype=np.int16)
    lines = ["[0.0]", "habari", "[1.0]"]
    write(package, "training", "one", sphere(samples, "pcm"), lines)
    write(package, "training", "two", b"", lines, suffix=".wav")
    soundfile.write(package / "conversational/training/audio/two.wav", samples, 8_000)
    splits = load(tmp_path, ("train", "validation"))
    for split in splits.values():
        np.testing.assert_array_equal(soundfile.read(split.audio(0), dtype="int16")[0], samples)


def test_of_few_recordings_ninety_percent_of_the_segments_are_for_training(tmp_path, rng):
    write_package(tmp_path / SWAHILI, rng, 5)
    train, validation = load(tmp_path, ("train", "validation")).values()
    assert (len(train), len(validation)) == (9, 1)
    assert validation.clip_names == ["BABEL_004_inLine_2"]


def test_of_many_recordings_each_stays_in_one_split(tmp_path, rng):
    write_package(tmp_path / SWAHILI, rng, 27)
    train, validation = load(tmp_path, ("train", "validation")).values()
    recordings = [{str(split.audio(row)) for row in range(len(split))} for split in (train, validation)]
    assert [len(paths) for paths in recordings] == [24, 3] and not recordings[0] & recordings[1]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("<no-speech>", ""),
        ("(()) ndio <sta> <male-to-female> sawa <lipsmack>", "ndio sawa"),
        ("  a<int>b  c ", "a b c"),
        ("*naku* pend- ~ <unknown>", "*naku* pend- ~ <unknown>"),
    ],
)
def test_tags_that_stand_for_no_word_go_and_nothing_else(text, clean):
    assert clean_tags(text) == clean


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["habari", "[1.0]"], "line 1: text before the first time stamp"),
        (["[0.0]", "a", "[1.0]", "b"], r"text after the last time stamp, \[1.000\]"),
        (["[0.0]", "a", "[2.0]", "b", "[1.0]"], "no rising time stamps"),
        (["[0.0]"], "no rising time stamps"),
        ([], "no rising time stamps"),
    ],
)
def test_a_broken_transcript_is_named(tmp_path, lines, message):
    path = tmp_path / "10_inLine.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=message) as raised:
        read_transcript(path)
    assert str(path) in str(raised.value)


def test_shortened_audio_is_refused_with_the_remedy(tmp_path, rng):
    samples = rng.integers(-9, 9, 100, dtype=np.int16)
    write(tmp_path / SWAHILI, "training", "x", sphere(samples, "pcm,embedded-shorten-v2.00"), ["[0.0]", "a", "[1.0]"])
    with pytest.raises(InputError, match=r"x\.sph is compressed with shorten.*sph2pipe"):
        load(tmp_path, ("train",))


def test_a_transcript_without_recording_is_named(tmp_path, rng):
    write_package(tmp_path / SWAHILI, rng, 2)
    (tmp_path / SWAHILI / "conversational/training/audio/BABEL_001_inLine.sph").unlink()
    with pytest.raises(InputError, match=r"BABEL_001_inLine\.txt has no recording BABEL_001_inLine\.sph or \.wav"):
        load(tmp_path, ("train",))


def test_packages_are_told_apart_by_the_numbers_in_their_paths(tmp_path, rng):
    for package in (SWAHILI, LAO):
        write_package(tmp_path / package, rng, 1)
    assert find_packages(tmp_path) == [tmp_path / SWAHILI, tmp_path / LAO]
    for language, package in (("sw", SWAHILI), ("lo", LAO)):
        split = load(tmp_path, ("test",), language=language)["test"]
        assert split.audio(0).is_relative_to(tmp_path / package) and split.languages == [language] * 2
    with pytest.raises(InputError, match="babel.ka: no package for it.*LDC2016S12"):
        load(tmp_path, ("test",), language="ka")
    with pytest.raises(InputError) as raised:
        load(tmp_path, ("test",), language="all")
    assert all(f"babel.{language}: no package" in str(raised.value) for language in ("as", "ka", "tl"))


def test_a_package_of_any_name_serves_if_it_is_the_only_one(tmp_path, rng):
    write_package(tmp_path / "mine", rng, 1)
    assert len(load(tmp_path / "mine", ("test",), language="tl")["test"]) == 2
    write_package(tmp_path / "more" / SWAHILI, rng, 1)
    with pytest.raises(InputError, match="no package for it"):
        load(tmp_path / "more", ("test",), language="tl")


def test_no_directory_or_an_empty_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="--data_dir is needed for BABEL.*LDC2016S06"):
        load(None)
    with pytest.raises(InputError, match="--data_dir .*nothing is not a directory"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match="no folder conversational/training/transcription"):
        load(tmp_path)
