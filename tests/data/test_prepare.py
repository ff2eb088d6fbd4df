"""What is left out is counted and named, what is kept is exact, and headers are read once."""

import io
import itertools
import json
import logging
import pickle
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import soundfile

from xtremes_jax.data import audio, durations
from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.data.collate import Reader, Schedule
from xtremes_jax.data.durations import read_durations
from xtremes_jax.data.prepare import SkippedClip, check_skipped, prepare, write_skipped
from xtremes_jax.data.sources import RawSplit
from xtremes_jax.data.subwords import encode_targets, learn_tokenizer
from xtremes_jax.data.text import build_vocabulary
from xtremes_jax.errors import InputError

TOKENIZER = CharacterTokenizer(build_vocabulary(["abcdefghijklmnopqrstuvwxyz"]))


def num_frames(samples):
    """Of the wav2vec 2.0 front end: seven convolutions."""
    for kernel, stride in [(10, 5)] + 4 * [(3, 2)] + 2 * [(2, 2)]:
        samples = (samples - kernel) // stride + 1
    return samples


FRESH = itertools.count()


def sound(seconds, rate=16_000, **more):
    """Another noise at every call, the same in every run."""
    samples = np.random.default_rng(next(FRESH)).integers(-9999, 9999, round(seconds * rate)).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", **more})
    return file.getvalue()


def split_of(clips, target="transcription", features=None, label_names=None, name="train"):
    """`clips`: (bytes or path or None, target[, (start, end)])."""
    rows = []
    for source, value, *segment in clips:
        stored = {"bytes": source, "path": None} if isinstance(source, bytes) else {"bytes": None, "path": source}
        row = {"audio": stored, target: value}
        if segment:
            row |= {"segment_start": segment[0][0], "segment_end": segment[0][1]}
        rows.append(row)
    stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    kinds = {"audio": stored, target: features or datasets.Value("string")}
    if len(clips[0]) > 2:
        kinds |= {"segment_start": datasets.Value("float64"), "segment_end": datasets.Value("float64")}
    table = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    languages = [("es", "fr")[row % 2] for row in range(len(rows))]
    return RawSplit(name, table, "audio", target, languages, [f"clip-{row}" for row in range(len(rows))], label_names)


@pytest.fixture
def run(tmp_path):
    def call(raw, kind="ctc", **more):
        more = {"tokenizer": TOKENIZER, "cache_dir": tmp_path / "cache", "show_progress": False, **more}
        return prepare(raw, kind=kind, num_frames=num_frames, **more)

    return call


def test_good_clips_are_exact(run, tmp_path):
    path = tmp_path / "clip.flac"
    path.write_bytes(sound(0.5, 8000, format="FLAC"))
    clips = [(sound(1.0), "Hello, World"), (str(path), " two  spaces "), (sound(0.25, 44_100), "b")]
    got = run(split_of(clips), chars_to_ignore=[","])
    assert got.rows.tolist() == [0, 1, 2] and got.num_samples.tolist() == [16_000, 8000, 4000]
    assert got.references == ["hello world", "two  spaces", "b"]
    assert [labels.tolist() for labels in got.labels] == [
        TOKENIZER("hello world ").input_ids, TOKENIZER(" two  spaces  ").input_ids, TOKENIZER("b ").input_ids,
    ]  # fmt: skip
    assert got.languages == ["es", "fr", "es"] and got.clip_names == ["clip-0", "clip-1", "clip-2"]
    assert got.has_loss.tolist() == [True] * 3 and not got.is_float
    assert got.skipped == [] and got.filtered == {} and got.unknown_characters == {}
    again = pickle.loads(pickle.dumps(got))  # as it goes to worker processes
    for index in range(3):
        samples = again.read_audio(index)
        assert samples.dtype == np.int16 and len(samples) == got.num_samples[index]
    np.testing.assert_array_equal(again.read_audio(0), audio.decode(clips[0][0]))


def test_segments_of_one_recording(run, tmp_path):
    path = tmp_path / "call.sph"
    path.write_bytes(sound(10, 8000, format="NIST"))
    spans = [(0.5, 1.5), (1.5, 4.0), (9.0, 12.5), (8.0, 8.0)]
    got = run(split_of([(str(path), "words", span) for span in spans]))
    assert got.num_samples.tolist() == [16_000, 40_000] and got.rows.tolist() == [0, 1]
    np.testing.assert_array_equal(got.read_audio(1), audio.decode(path, (1.5, 4.0)))
    assert [clip.sample_id for clip in got.skipped] == [2, 3]
    assert all("segment" in clip.reason for clip in got.skipped)


def test_workers_get_the_clips_and_nothing_else(run, tmp_path):
    path = tmp_path / "call.wav"
    path.write_bytes(sound(10, 8000))
    spans = [(0.5, 1.5), (1.5, 4.0), (9.0, 8.0), (5.0, 6.0)] * 30
    raw = split_of([(str(path), f"words {'abcdefg' * (row % 3)}", span) for row, span in enumerate(spans)])
    whole = run(raw)
    sent = pickle.dumps(whole.for_workers())
    light = pickle.loads(sent)
    assert len(sent) < 0.6 * len(pickle.dumps(whole))
    assert (light.references, light.languages, light.skipped, light.raw.languages, light.raw.clip_names) == ([],) * 5
    assert light.raw.dataset.column_names == ["audio", "segment_start", "segment_end"]
    assert list(light.clip_names) == whole.clip_names and len(light.labels) == len(whole.labels) == 90
    for index in (0, 1, 2, 89):
        assert light.labels[index].tolist() == whole.labels[index].tolist()
        np.testing.assert_array_equal(light.read_audio(index), whole.read_audio(index))


def test_a_reader_travels_without_what_workers_do_not_need(run):
    whole = run(split_of([(sound(0.5 + 0.1 * row), "abc" * row) for row in range(1, 5)]))
    schedule = Schedule(whole.num_samples, np.array([32_000]), {"batch_size": 4, "shuffle": False})
    here = Reader(whole, schedule, 0, 1)
    there = pickle.loads(pickle.dumps(here))
    assert there.split.references == [] and here.split.references == whole.references
    for one, two in zip(here.read(0).batch, there.read(0).batch, strict=True):
        np.testing.assert_array_equal(one, two)


def bad_clips(tmp_path):
    (tmp_path / "empty.wav").touch()
    return {
        "transcript is null": (sound(1), None, "no transcript: column transcription is null"),
        "transcript is empty": (sound(1), "  ", "its transcript '  ' is empty"),
        "transcript has only ignored": (sound(1), "?!", r"its transcript '\?!' is empty after --chars_to_ignore"),
        "audio is no audio": (b"<html>not found</html>", "a", "not audio that libsndfile can read"),
        "audio is empty": (b"", "a", "empty"),
        "file is empty": (str(tmp_path / "empty.wav"), "a", "empty.wav: it is empty"),
        "file is missing": (str(tmp_path / "gone.wav"), "a", "gone.wav: it cannot be read: No such file"),
        "row has no audio": (None, "a", "no audio"),
        "truncated": (sound(1)[:9000], "a", "truncated"),
        "transcript is too long": (sound(0.2), "abcdefghi", r"needs 10 frames of the encoder, its audio has 9: .*abc"),
        "audio is too short": (sound(0.02), "a", "too short for a single frame"),
    }


def test_every_fault_is_named(run, tmp_path):
    bad = bad_clips(tmp_path)
    clips = [(sound(1), "good")]
    for source, text, _ in bad.values():
        clips += [(source, text), (sound(1), "good")]
    got = run(split_of(clips), chars_to_ignore=["?", "!"])
    assert got.rows.tolist() == list(range(0, len(clips), 2))
    assert [clip.sample_id for clip in got.skipped] == list(range(1, len(clips), 2))
    for clip, (fault, (_, _, reason)) in zip(got.skipped, bad.items(), strict=True):
        assert clip.split == "train" and clip.clip == f"clip-{clip.sample_id}"
        assert re.search(reason, clip.reason), fault


def test_nan_is_found_when_the_clip_is_read(run):
    file = io.BytesIO()
    soundfile.write(file, np.full(3000, np.nan, np.float32), 16_000, format="WAV", subtype="FLOAT")
    got = run(split_of([(file.getvalue(), "a"), (sound(1), "b")]))
    assert got.is_float  # so the loader makes all of the split float32
    with pytest.raises(InputError, match="sample 0 .*nan"):
        got.read_audio(0)


@pytest.mark.parametrize(("text", "needed"), [("abcd", 5), ("aabb", 7), ("a  b", 6), ("aaaa", 8), ("a", 2)])
def test_ctc_needs_a_frame_a_label_and_one_between_equals(run, text, needed):
    samples = next(n for n in range(400, 99_999) if num_frames(n) == needed)  # the least that fits
    for count, kept in [(samples, 2), (samples - 1, 1)]:
        got = run(split_of([(sound(2), "x"), (sound(count / 16_000), text)]))
        assert len(got) == kept and got.has_loss.all()


def test_scoring_keeps_what_has_no_loss(run):
    clips = [(sound(1), "good"), (sound(0.1), "far too long a text"), (sound(0.01), "a"), (sound(1), ""), (b"x", "a")]
    got = run(split_of(clips), purpose="score", min_duration=0.5, max_duration=0.9)
    assert got.rows.tolist() == [0, 1, 2] and got.has_loss.tolist() == [True, False, False]
    assert got.references[1] == "far too long a text"
    assert [len(labels) for labels in got.labels] == [5, 0, 0]
    assert [clip.sample_id for clip in got.skipped] == [3, 4] and got.filtered == {}


def test_duration_limits_are_strict_and_counted(run):
    seconds = [0.5, 1.0, 1.0001, 1.5, 1.9999, 2.0, 3.0]
    raw = split_of([(sound(length), "a") for length in seconds])
    got = run(raw, min_duration=1.0, max_duration=2.0)
    assert got.rows.tolist() == [2, 3, 4] and got.skipped == []
    assert got.filtered == {"--min_duration_in_seconds": 2, "--max_duration_in_seconds": 2}
    assert run(raw, max_duration=None).rows.tolist() == list(range(7))


def test_classification(run):
    names = ["no", "yes"]
    kind = datasets.ClassLabel(names=names)
    raw = split_of([(sound(1), value) for value in (1, 0, None, -1, 1)], "intent", kind, names)
    got = run(raw, "classification", tokenizer=None)
    assert got.references == ["yes", "no", "yes"] and [ids.tolist() for ids in got.labels] == [[1], [0], [1]]
    assert [clip.reason for clip in got.skipped] == [
        "it has no class: column intent is null, negative or none of its classes"
    ] * 2
    short = split_of([(sound(1), 1), (sound(0.01), 0)], "intent", kind, names)
    assert len(run(short, "classification")) == 1 and len(run(short, "classification", purpose="score")) == 2


def test_classes_out_of_range_and_columns_of_the_wrong_kind(run, monkeypatch):
    raw = split_of([(sound(1), "a")] * 3, label_names=["x", "y"])
    monkeypatch.setattr(RawSplit, "targets", lambda self: [0, 2, 1])
    got = run(raw, "classification")
    assert [clip.reason for clip in got.skipped] == ["its class 2 in column transcription is not one of 0 to 1"]
    with pytest.raises(InputError, match="--target_column_name transcription: clip-0 has 0 there, which is no text"):
        run(raw)
    with pytest.raises(InputError, match="holds no classes"):
        run(split_of([(sound(1), "a")]), "classification")


def test_characters_outside_the_vocabulary_are_listed_and_the_clip_stays(run, caplog):
    with caplog.at_level(logging.WARNING):
        got = run(split_of([(sound(2), "año niño ß"), (sound(1), "plain")]))
    assert len(got) == 2 and got.unknown_characters == {"ñ": 2, "ß": 1}
    assert got.references[0] == "año niño ß" and list(got.labels[0]).count(TOKENIZER.get_vocab()["[UNK]"]) == 3
    assert "2 characters" in caplog.text and "'ñ' (2), 'ß' (1)" in caplog.text


def test_nothing_left_is_an_error_that_says_why(run):
    with pytest.raises(InputError, match=r"(?s)of 2, 1 cannot be used, and 1 are outside .*--max_dur.*clip-0: .*empty"):
        run(split_of([(b"", "a"), (sound(3), "b")]), max_duration=2.0)


def test_too_many_bad_clips_stop_the_run(run, tmp_path):
    raw = split_of([(b"junk", "a")] * 7 + [(sound(0.2), "b")] * 13)
    got = run(raw)
    listing = tmp_path / "out" / "skipped.jsonl"
    write_skipped(listing, got.skipped)
    with pytest.raises(InputError) as error:
        check_skipped([run(split_of([(sound(1), "a")])), got], 0.3, listing)
    for said in ["7 of 20 clips (35.0%) of split train", "--max_skipped_fraction 0.3", "clip-0: ", "clip-4: ",
                 "… and 2 more", str(listing)]:  # fmt: skip
        assert said in str(error.value)
    assert "clip-5" not in str(error.value)
    check_skipped([got], 0.35, listing)
    lines = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    assert [SkippedClip(**line) for line in lines] == got.skipped and len(lines) == 7


@pytest.fixture
def probed(monkeypatch):
    """Rows whose header was read since it was last cleared."""
    calls = []

    def counted(source, segment=None, *, in_pieces=False, plain=audio.probe):
        calls.append(source)
        return plain(source, segment)

    monkeypatch.setattr(durations.audio, "probe", counted)
    return calls


def test_headers_are_read_once_and_again_when_files_change(tmp_path, probed):
    paths = [tmp_path / f"{name}.wav" for name in "abc"]
    for path in paths[:2]:
        path.write_bytes(sound(1))
    clips = [(str(path), "t") for path in paths] + [(sound(0.5), "t"), (b"junk", "t")]
    options = {"cache_dir": tmp_path / "cache", "show_progress": False}
    first = read_durations(split_of(clips), **options)
    assert first.num_samples.tolist() == [16_000, 16_000, 0, 8000, 0] and set(first.reasons) == {2, 4}
    assert len(probed) == 5
    probed.clear()
    again = read_durations(split_of(clips), **options)
    assert again.num_samples.tolist() == first.num_samples.tolist() and again.reasons == first.reasons
    assert probed == []
    paths[0].write_bytes(sound(2, subtype="FLOAT"))  # replaced
    shutil.copy(paths[0], paths[2])  # found again
    repaired = read_durations(split_of(clips), **options)
    assert repaired.num_samples.tolist() == [32_000, 16_000, 32_000, 8000, 0] and set(repaired.reasons) == {4}
    assert repaired.is_float.tolist() == [True, False, True, False, False]
    assert sorted(probed) == [paths[0], paths[2]]
    probed.clear()
    assert read_durations(split_of(clips), **options).is_float.tolist() == repaired.is_float.tolist()
    assert probed == []
    read_durations(split_of(clips), overwrite=True, **options)
    assert len(probed) == 5


def test_other_rows_have_other_durations(tmp_path, probed):
    raw = split_of([(sound(seconds), "t") for seconds in (0.5, 1.0, 1.5)])
    options = {"cache_dir": tmp_path, "show_progress": False}
    read_durations(raw, **options)
    part = RawSplit("train", raw.dataset.select([2, 0]), "audio", "transcription", ["x"] * 2, ["p", "q"], None)
    assert read_durations(part, **options).num_samples.tolist() == [24_000, 8000]
    assert len(probed) == 5 and len(list((tmp_path / "durations").iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"num_samples": [1]}', None])
def test_a_broken_cache_is_read_anew_and_said(tmp_path, probed, caplog, content):
    raw = split_of([(sound(1), "t")] * 2)
    options = {"cache_dir": tmp_path, "show_progress": False}
    good = read_durations(raw, **options)
    (kept,) = (tmp_path / "durations").iterdir()
    if content is None:
        content = json.dumps({**json.loads(kept.read_text()), "num_samples": [1, 2, 3]})
    kept.write_text(content)
    assert read_durations(raw, **options).num_samples.tolist() == good.num_samples.tolist()
    assert len(probed) == 4 and str(kept) in caplog.text


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path, caplog):
    (tmp_path / "file").touch()
    options = {"cache_dir": tmp_path / "file", "show_progress": False}
    assert read_durations(split_of([(sound(1), "t")]), **options).num_samples.tolist() == [16_000]
    assert "not kept" in caplog.text


def test_the_number_of_threads_changes_nothing(tmp_path):
    raw = split_of([(sound(0.1 + 0.01 * k), "t") for k in range(40)])
    expected = [round(1600 + 160 * k) for k in range(40)]
    for workers in (1, 7):
        got = read_durations(raw, num_workers=workers, cache_dir=tmp_path / str(workers), show_progress=False)
        assert got.num_samples.tolist() == expected


@pytest.mark.parametrize("picked", [False, True])
def test_rows_are_read_in_chunks_few_at_a_time(tmp_path, monkeypatch, picked):
    monkeypatch.setattr(durations, "_CHUNK", 5)
    monkeypatch.setattr(durations, "_UNDER_WAY", 3)
    raw = split_of([(sound(0.1 + 0.01 * k), "t") for k in range(43)])
    order = np.random.default_rng(5).permutation(43) if picked else np.arange(43)
    if picked:
        names = [f"clip-{row}" for row in order]
        raw = RawSplit("train", raw.dataset.select(order), "audio", "transcription", names, names, None)
    asked, submitted, waiting, most = [], [], [0], [0]
    stored, submit = RawSplit.stored, ThreadPoolExecutor.submit

    def counted(pool, *job):
        future = submit(pool, *job)
        submitted.append(future)
        result = future.result
        waiting[0] += 1
        most[0] = max(most[0], waiting[0])

        def taken():
            waiting[0] -= 1
            return result()

        future.result = taken
        return future

    monkeypatch.setattr(RawSplit, "stored", lambda self, rows: asked.append(rows) or stored(self, rows))
    monkeypatch.setattr(ThreadPoolExecutor, "submit", counted)
    got = read_durations(raw, num_workers=3, cache_dir=tmp_path, show_progress=False)
    assert got.num_samples.tolist() == [1600 + 160 * k for k in order]
    assert sorted(asked, key=lambda rows: rows.start) == [range(k, min(k + 5, 43)) for k in range(0, 43, 5)]
    assert len(submitted) == 9 and most[0] == 4


def test_only_changed_files_are_read_again_wherever_their_rows_are(tmp_path, probed, monkeypatch):
    paths = [tmp_path / f"{k}.wav" for k in range(30)]
    for path in paths:
        path.write_bytes(sound(0.2))
    options = {"cache_dir": tmp_path / "cache", "show_progress": False}
    raw = split_of([(str(path), "t") for path in paths])
    threads = set()
    plain = durations._stamp
    monkeypatch.setattr(durations, "_stamp", lambda file: threads.add(threading.current_thread().name) or plain(file))
    read_durations(raw, **options)
    probed.clear()
    for k in (1, 2, 17, 29):
        paths[k].write_bytes(sound(0.3))
    got = read_durations(raw, **options)
    assert sorted(probed) == sorted(paths[k] for k in (1, 2, 17, 29))
    assert got.num_samples.tolist() == [4800 if k in (1, 2, 17, 29) else 3200 for k in range(30)]
    assert threading.current_thread().name not in threads, "a network's answers are waited for side by side"


def test_progress_bar_can_be_turned_off(tmp_path, capsys):
    for show in (False, True):
        read_durations(split_of([(sound(1), "t")]), cache_dir=tmp_path / str(show), show_progress=show)
        assert ("durations" in capsys.readouterr().err) == show


def test_translations_end_with_the_end_token_and_need_no_frame_for_each(run, caplog):
    tokenizer = learn_tokenizer(["the red boat", "a cat sees the river", "bread"], vocab_size=22)
    texts = ["The red, boat!", None, "A cat sees the river.", " .", "the ñ boat", "a"]
    clips = [(sound(0.1 + 0.05 * row), text) for row, text in enumerate(texts)]
    raw = split_of([*clips, (sound(0.02), "a boat")], target="translation")
    with caplog.at_level("WARNING"):
        got = run(raw, "translation", tokenizer=tokenizer, chars_to_ignore=list(",!."))
    assert got.rows.tolist() == [0, 2, 4, 5] and got.references == [
        "the red boat",
        "a cat sees the river",
        "the ñ boat",
        "a",
    ]
    for labels, expected in zip(got.labels, encode_targets(tokenizer, got.references)[0], strict=True):
        np.testing.assert_array_equal(labels, expected)
        assert labels.dtype == np.int32 and labels[-1] == tokenizer.eos_token_id
    # 0.2 s are 9 frames, fewer than the labels: no alignment is needed.
    assert len(got.labels[1]) > num_frames(3200) and got.has_loss.all()
    assert got.unknown_characters == {"ñ": 1} and "1 characters of the targets" in caplog.text
    assert {clip.sample_id: clip.reason for clip in got.skipped} == {
        1: "it has no translation: column translation is null",
        3: "its translation ' .' is empty after --chars_to_ignore",
        6: "its audio is too short for a single frame of the encoder",
    }
    scored = run(raw, "translation", tokenizer=tokenizer, chars_to_ignore=list(",!."), purpose="score")
    assert scored.rows.tolist() == [0, 2, 4, 5, 6] and scored.has_loss.tolist() == [True] * 4 + [False]


def test_translations_longer_than_the_decoder(run):
    tokenizer = learn_tokenizer(["abc def"], vocab_size=12)
    raw = split_of(
        [(sound(0.3), "a b"), (sound(0.3), "fed cab fed cab fed"), (sound(0.3), "abc")], target="translation"
    )
    sizes = [len(labels) for labels in run(raw, "translation", tokenizer=tokenizer).labels]
    most = max(sizes[0], sizes[2])
    got = run(raw, "translation", tokenizer=tokenizer, max_target_length=most)
    assert got.rows.tolist() == [0, 2] and sizes[1] > most
    assert got.skipped[0].reason == f"its translation has {sizes[1]} tokens, the decoder {most} positions"
    scored = run(raw, "translation", tokenizer=tokenizer, max_target_length=most, purpose="score")
    assert scored.rows.tolist() == [0, 1, 2] and scored.has_loss.tolist() == [True, False, True]
    assert scored.labels[1].size == 0 and not scored.skipped
