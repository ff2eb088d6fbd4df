"""Recognition of recordings too long for one pass: in windows as in one pass where both can be had."""

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from corpora import RATE, text, tone, write_corpus
from runs import flags, rows, run_on_eight_devices

from xtremes_jax import InputError, evaluate, inference, load_model, train, transcribe
from xtremes_jax.evaluation.metrics import character_error_rate
from xtremes_jax.loading import Model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=120)


@pytest.fixture(scope="module")
def recogniser(corpus, tmp_path_factory) -> Path:
    """A model that has learned the letters of the tones."""
    output = tmp_path_factory.mktemp("recogniser")
    changes = dict(
        max_steps=300, learning_rate=5e-3, per_device_train_batch_size=8, mask_time_prob=0, attention_dropout=0,
        hidden_dropout=0, feat_proj_dropout=0, layerdrop=0, logging_steps=100, save_strategy="no",
    )  # fmt: skip
    assert train.main(flags(corpus, output, "mls.all", **changes)) == 0
    return output


def spoken(rng, words: int) -> tuple[str, np.ndarray]:
    said = " ".join(text(rng) for _ in range(words))
    return said, tone(said, rng)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> dict[str, str]:
    """Path -> what is said: two of some 15 s, and three of a word or so between them."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(7)
    found = {}
    for place, words in enumerate((1, 15, 1, 12, 1)):
        said, waveform = spoken(rng, words)
        path = folder / f"{place}.flac"
        soundfile.write(path, waveform, RATE)
        found[str(path)] = said
    return found


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("strides", [None, 1, (1.0, 0.5)])
def test_a_trained_model_writes_in_windows_what_it_writes_in_one_pass(recogniser, recordings, beams, strides):
    model = load_model(recogniser)
    paths = list(recordings)
    one = transcribe(model, paths, beams=beams)
    windows = dict(chunk_length_s=4, stride_length_s=strides, beams=beams)
    many = transcribe(model, paths, **windows, batch_size=3)
    assert [many[place] for place in (0, 2, 4)] == [one[place] for place in (0, 2, 4)], "no longer than a window"
    # A frame attends to all of one pass, and to its window alone: hardly a letter is another for that.
    said = list(recordings.values())
    print(character_error_rate(many, one), character_error_rate(one, said), character_error_rate(many, said))
    assert character_error_rate(many, one) < 0.03
    assert character_error_rate(many, said) < character_error_rate(one, said) + 0.02 < 0.3
    assert many == transcribe(model, paths, **windows, batch_size=2), "however the windows are batched"
    assert one == transcribe(model, paths, chunk_length_s=60, beams=beams), "windows longer than all"


def test_bytes_and_files_of_other_rates_are_read_in_windows(recogniser, recordings, tmp_path, rng):
    model, path = load_model(recogniser), list(recordings)[1]
    content = Path(path).read_bytes()
    (expected,) = transcribe(model, path, chunk_length_s=3)
    assert transcribe(model, [content, path], chunk_length_s=3) == [expected, expected]
    samples, _ = soundfile.read(path)
    double = tmp_path / "float.wav"
    soundfile.write(double, samples, RATE, subtype="FLOAT")
    assert transcribe(model, [double], chunk_length_s=3) == [expected]


def test_what_transcribe_cannot_do_is_told(recogniser, recordings, tmp_path, caplog, monkeypatch):
    model, path = load_model(recogniser), list(recordings)[1]
    with pytest.raises(InputError, match="stride_length_s needs chunk_length_s"):
        transcribe(model, path, stride_length_s=1)
    with pytest.raises(InputError, match="strides take 50 and 50 of them"):
        transcribe(model, path, chunk_length_s=2, stride_length_s=1)
    cut = tmp_path / "cut.flac"
    cut.write_bytes(Path(path).read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"^[^:]*cut.flac: it is damaged"):
        transcribe(model, [path, cut], chunk_length_s=2)
    content = Path(path).read_bytes()
    cut.write_bytes(content[: len(content) // 2] + bytes(2000) + content[len(content) // 2 + 2000 :])
    with pytest.raises(InputError, match=r"^[^:]*cut.flac: it is damaged"):
        transcribe(model, [path, cut], chunk_length_s=2)
    monkeypatch.setattr(inference, "LONG_SECONDS", 2)
    with caplog.at_level(logging.WARNING):
        transcribe(model, path)
    assert f"{path} is " in caplog.text and "Give chunk_length_s=30: windows bound it." in caplog.text

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(Model, "__call__", full)
    with pytest.raises(InputError, match=r"not enough memory for batches of 1 clips. .*1.flac is 1. s long .*=30"):
        transcribe(model, path)


@pytest.fixture(scope="module")
def manifest(recordings, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "test.csv"
    lines = [f"{file},{said},{'de' if place % 2 else 'pl'}" for place, (file, said) in enumerate(recordings.items())]
    path.write_text("\n".join(["path,transcription,language", *lines, ""]))
    return path


def scoring(model, manifest, output, **changes) -> list[str]:
    values = {
        "model_name_or_path": model, "dataset_name": manifest.parent, "task": "mls", "output_dir": output,
        "predict_split_name": "test", "disable_tqdm": True, "cache_dir": manifest.parent / "cache",
        "per_device_eval_batch_size": 4, **changes,
    }  # fmt: skip
    return [part for name, value in values.items() for part in (f"--{name}", *str(value).split(" "))]


@pytest.mark.parametrize("beams", [1, 3])
def test_evaluation_scores_windows_and_whole_clips_together(recogniser, recordings, manifest, tmp_path, capsys, beams):
    windows = dict(chunk_length_s=3, stride_length_s=(0.5, 0.4))
    expected = transcribe(load_model(recogniser), list(recordings), beams=beams, **windows)
    changes = dict(chunk_length_s="3", stride_length_s="0.5 0.4", ctc_beams=beams)
    assert evaluate.main(scoring(recogniser, manifest, tmp_path, **changes)) == 0
    assert "predict: 2 of 5 clips are longer than 3.00 s, and scored in windows" in capsys.readouterr().err
    found = {row["id"]: row["prediction"] for row in rows(tmp_path / "predictions.jsonl")}
    assert list(found.values()) == expected
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["samples"], results["windowed_clips"], results["chunk_length_s"]) == (5, 2, 3)
    said = list(recordings.values())
    of_language = [character_error_rate(expected[start::2], said[start::2]) for start in (0, 1)]
    assert results["cer"] == pytest.approx(np.mean(of_language)) and np.isfinite(results["loss"])


def test_evaluation_of_nothing_but_long_recordings_has_no_loss(recogniser, recordings, manifest, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    lines = manifest.read_text().splitlines()
    (alone / "test.csv").write_text("\n".join([lines[0], lines[2], lines[4], ""]))
    assert evaluate.main(scoring(recogniser, alone / "test.csv", tmp_path / "out", chunk_length_s=3)) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["windowed_clips"] == results["samples"] == 2 and results["loss"] is None
    found = [row["prediction"] for row in rows(tmp_path / "out" / "predictions.jsonl")]
    assert found == transcribe(load_model(recogniser), [list(recordings)[1], list(recordings)[3]], chunk_length_s=3)


def test_a_recording_damaged_on_the_way_is_listed_and_the_others_are_scored(recogniser, recordings, tmp_path):
    content = Path(list(recordings)[1]).read_bytes()
    (tmp_path / "bad.flac").write_bytes(
        content[: len(content) // 2] + bytes(2000) + content[len(content) // 2 + 2000 :]
    )
    files = [tmp_path / "bad.flac", *list(recordings)[2:4]]
    (tmp_path / "test.csv").write_text("path,transcription,language\n" + "".join(f"{file},a,de\n" for file in files))
    changes = dict(chunk_length_s=3, max_skipped_fraction=0.5)
    assert evaluate.main(scoring(recogniser, tmp_path / "test.csv", tmp_path / "out", **changes)) == 0
    (skipped,) = rows(tmp_path / "out" / "skipped.jsonl")
    assert skipped["clip"].endswith("bad.flac") and skipped["sample_id"] == 0
    found = [row["prediction"] for row in rows(tmp_path / "out" / "predictions.jsonl")]
    assert found == transcribe(load_model(recogniser), list(recordings)[2:4], chunk_length_s=3)
    assert evaluate.main(scoring(recogniser, tmp_path / "test.csv", tmp_path / "again", chunk_length_s=3)) == 2


def test_clips_longer_than_an_hour_are_scored_in_windows(recogniser, recordings, manifest, tmp_path, monkeypatch):
    from xtremes_jax.data import audio

    monkeypatch.setattr(audio, "MAX_SECONDS", 5.0)
    changes = dict(max_skipped_fraction=0.5, cache_dir=tmp_path / "cache")
    assert evaluate.main(scoring(recogniser, manifest, tmp_path / "one", **changes)) == 0
    assert len(rows(tmp_path / "one" / "skipped.jsonl")) == 2
    assert evaluate.main(scoring(recogniser, manifest, tmp_path / "many", chunk_length_s=4, **changes)) == 0
    assert not rows(tmp_path / "many" / "skipped.jsonl") and len(rows(tmp_path / "many" / "predictions.jsonl")) == 5


def test_eight_devices_score_as_one(recogniser, manifest, tmp_path):
    one = tmp_path / "one"
    assert evaluate.main(scoring(recogniser, manifest, one, chunk_length_s=3, ctc_beams=3)) == 0
    arguments = scoring(
        recogniser, manifest, tmp_path / "eight", chunk_length_s=3, ctc_beams=3, per_device_eval_batch_size=1
    )
    run_on_eight_devices(f"from xtremes_jax import evaluate; assert evaluate.main({arguments!r}) == 0")
    assert rows(tmp_path / "eight" / "predictions.jsonl") == rows(one / "predictions.jsonl")


def test_training_scores_in_windows_too(recogniser, corpus, tmp_path):
    changes = dict(
        config_name=None, model_name_or_path=recogniser, chunk_length_s=0.8, eval_strategy="steps", eval_steps=1,
        max_steps=1, save_strategy="no", do_predict=True,
    )  # fmt: skip
    assert train.main(flags(corpus, tmp_path, "mls.all", **changes)) == 0
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert 0 < results["eval_windowed_clips"] < results["eval_samples"] == 10
