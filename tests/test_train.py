"""Whole runs on small corpora of tones: what they write, that they learn, resume, stop and refuse."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from corpora import write_corpus
from runs import flags, parameters, rows
from safetensors.numpy import save_file

from xtremes_jax import InputError, evaluate, load_model, score, train, transcribe
from xtremes_jax.run_record import read_run
from xtremes_jax.training.signals import Interrupted, StopRequest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def recognition(corpus, tmp_path_factory) -> Path:
    """A finished recognition run that other tests look at."""
    output = tmp_path_factory.mktemp("recognition")
    assert train.main(flags(corpus, output, "mls.all", **RECOGNITION)) == 0
    return output


def test_a_run_writes_everything(recognition, capsys):
    results = json.loads((recognition / "all_results.json").read_text())
    for name in ("train_loss", "eval_wer", "eval_wer_de", "eval_wer_pl", "predict_wer", "predict_cer", "eval_loss"):
        assert np.isfinite(results[name]), name
    assert results["predict_wer"] == pytest.approx((results["predict_wer_de"] + results["predict_wer_pl"]) / 2)
    assert results["train_compilations"] <= results["train_buckets"] <= 2
    assert results["best_step"] in (3, 6)
    for role in ("train", "eval", "predict"):
        assert json.loads((recognition / f"{role}_results.json").read_text()).items() <= results.items()
    log = rows(recognition / "metrics.jsonl")
    assert [row["step"] for row in log if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in log if row["kind"] == "eval"] == [3, 6]
    assert all(0 <= row["padding"] < 1 and row["loss"] > 0 for row in log if row["kind"] == "train")
    predictions = rows(recognition / "predictions.jsonl")
    assert len(predictions) == 10 and {row["language"] for row in predictions} == {"de", "pl"}
    assert set(predictions[0]) == {"id", "sample_id", "language", "reference", "prediction"}
    assert list((recognition / "runs").glob("events.out.tfevents.*"))
    record = json.loads((recognition / "run.json").read_text())
    assert (record["task"], record["config"], record["synthetic"], record["trained"]) == ("mls", "mls.all", False, True)
    assert {role: scores["split"] for role, scores in record["scores"].items()} == {
        "eval": "validation", "predict": "test",
    }  # fmt: skip
    assert record["scores"]["predict"]["metrics"]["wer"] == results["predict_wer"]
    assert record["scores"]["predict"]["per_language"]["pl"]["cer"] == results["predict_cer_pl"]
    assert record["scores"]["predict"]["clips_per_language"] == {"de": 5, "pl": 5} and record["versions"]["jax"]
    assert score.main([str(recognition)]) == 0
    out = capsys.readouterr().out
    assert "2 of 8 languages" in out and f"{100 * results['predict_wer']:.1f}" in out
    assert (recognition / "skipped.jsonl").read_text() == ""
    assert not (recognition / ".lock").exists()


RECOGNITION = dict(
    do_predict=True, max_steps=6, evaluation_strategy="steps", eval_steps=3, save_steps=3, save_total_limit=2,
    load_best_model_at_end=True, metric_for_best_model="wer", report_to="tensorboard",
)  # fmt: skip


def test_a_finished_run_started_again_trains_no_more(recognition, corpus, tmp_path):
    again = shutil.copytree(recognition, tmp_path / "again")
    assert train.main(flags(corpus, again, "mls.all", **RECOGNITION)) == 0
    assert (again / "metrics.jsonl").read_bytes() == (recognition / "metrics.jsonl").read_bytes()
    assert (again / "train_results.json").read_bytes() == (recognition / "train_results.json").read_bytes()
    before, after = (json.loads((path / "all_results.json").read_text()) for path in (recognition, again))
    assert {name: value for name, value in after.items() if "runtime" not in name} == {
        name: value for name, value in before.items() if "runtime" not in name
    }
    for name, value in parameters(recognition).items():
        np.testing.assert_array_equal(parameters(again)[name], value)


def test_scoring_a_run_gives_its_own_scores(recognition, corpus, tmp_path):
    arguments = flags(
        corpus, tmp_path, None, model_name_or_path=recognition, config_name=None, task="mls", do_train=None,
        do_eval=None, freeze_feature_encoder=None, per_device_train_batch_size=None, max_steps=None,
        learning_rate=None, logging_steps=None, group_by_length=None, dataset_config_name=None, max_buckets=1,
        predict_split_name="test", per_device_eval_batch_size=3,
    )  # fmt: skip
    assert evaluate.main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    trained = json.loads((recognition / "all_results.json").read_text())
    assert results["wer"] == trained["predict_wer"] and results["cer"] == trained["predict_cer"]
    assert results["loss"] == pytest.approx(trained["predict_loss"], rel=1e-4)
    ours, theirs = read_run(tmp_path), read_run(recognition)
    assert ours.metrics == theirs.metrics and ours.per_language == theirs.per_language and ours.split == "test"

    def by_id(path):
        return {row["id"]: row["prediction"] for row in rows(path)}

    # Another bucket length and another batch size: padding does not change a prediction.
    assert by_id(tmp_path / "predictions.jsonl") == by_id(recognition / "predictions.jsonl")


def predictions_of(model, corpus, output, **changes) -> dict[str, str]:
    """What a model says of the test split."""
    arguments = flags(
        corpus, output, None, model_name_or_path=model, config_name=None, task="mls", do_train=None, do_eval=None,
        freeze_feature_encoder=None, per_device_train_batch_size=None, max_steps=None, learning_rate=None,
        logging_steps=None, group_by_length=None, predict_split_name="test", **changes,
    )  # fmt: skip
    assert evaluate.main(arguments) == 0
    return {row["id"]: row["prediction"] for row in rows(output / "predictions.jsonl")}


def test_scoring_by_seconds_gives_the_same_predictions(recognition, corpus, tmp_path):
    predictions, padding = [], []
    by_seconds = {"max_eval_batch_seconds": 2.5, "per_device_eval_batch_size": None}
    for size in ({"per_device_eval_batch_size": 5}, by_seconds):
        output = tmp_path / str(len(padding))
        predictions.append(predictions_of(recognition, corpus, output, **size))
        padding.append(json.loads((output / "results.json").read_text())["padding"])
    assert predictions[0] == predictions[1] and padding[0] != padding[1]


def test_a_tokenizer_with_another_blank_than_the_models_is_refused(recognition, corpus, tmp_path, capsys):
    other = shutil.copytree(recognition, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"pad_token_id": config["pad_token_id"] - 1}))
    with pytest.raises(AssertionError):
        predictions_of(other, corpus, tmp_path / "scored")
    assert "has pad_token_id" in capsys.readouterr().err


def test_transcripts_are_searched_with_as_many_beams_as_are_asked_for(recognition, corpus, tmp_path, rng):
    lively = shutil.copytree(recognition, tmp_path / "lively")
    weights = parameters(lively)
    for name in ("lm_head.weight", "lm_head.bias"):  # so that not all is blank
        weights[name] = rng.standard_normal(weights[name].shape).astype(np.float32)
    save_file(weights, lively / "model.safetensors", metadata={"format": "pt"})
    found = {beams: predictions_of(lively, corpus, tmp_path / str(beams), ctc_beams=beams) for beams in (1, 8)}
    assert found[1] != found[8] and any(found[1].values())
    clips = saved_clips(corpus, tmp_path)
    for beams in (1, 8):
        assert transcribe(lively, list(clips.values()), beams=beams) == [found[beams][name] for name in clips]
    with pytest.raises(InputError, match="beams is 0"):
        transcribe(lively, list(clips.values()), beams=0)
    with pytest.raises(InputError, match="batch_size is 0; it must be a whole number of at least 1"):
        transcribe(lively, list(clips.values()), batch_size=0)


def saved_clips(corpus, folder) -> dict[str, Path]:
    """Some clips of the test split as files: id -> path."""
    import pyarrow.parquet as pq

    paths = {}
    for row in pq.read_table(corpus / "mls.all" / "test.parquet").to_pylist()[:5]:
        path = folder / Path(row["audio"]["path"]).name
        path.write_bytes(row["audio"]["bytes"])
        paths[f"test/{path.name}"] = path
    return paths


def test_the_python_surface(recognition, corpus, tmp_path):
    model = load_model(recognition)
    raw = np.random.default_rng(0).integers(-3000, 3000, (2, 9000)).astype(np.int16)
    raw[1, 5000:] = 0
    output = model(raw, np.array([9000, 5000]))
    assert output.logits.shape == (2, 27, model.config.vocab_size) and output.logit_lengths.tolist() == [27, 15]
    alone = model(raw[1:, :5000].astype(np.float32) / 32768)
    np.testing.assert_allclose(output.logits[1, :15], alone.logits[0], atol=1e-4)

    clips = saved_clips(corpus, tmp_path)
    expected = {row["id"]: row["prediction"] for row in rows(recognition / "predictions.jsonl")}
    assert transcribe(model, list(clips.values())) == [expected[name] for name in clips]


def test_transformers_loads_what_comes_out(recognition):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCTC, AutoProcessor

    raw = (1000 * np.random.default_rng(1).standard_normal((1, 8000))).astype(np.float32) / 32768
    processor, model = AutoProcessor.from_pretrained(recognition), AutoModelForCTC.from_pretrained(recognition)
    inputs = processor(raw[0], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        theirs = model(inputs.input_values).logits.numpy()
    np.testing.assert_allclose(load_model(recognition)(raw).logits, theirs, atol=1e-5)


@pytest.fixture(scope="module")
def classification(corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("classification")
    changes = dict(
        max_steps=240, eval_strategy="steps", eval_steps=60, save_steps=60, load_best_model_at_end=True, bf16=True,
        metric_for_best_model="f1", learning_rate=5e-3, mask_time_prob=0, save_total_limit=1, logging_steps=60,
    )  # fmt: skip
    assert train.main(flags(corpus, output, "minds14.all", **changes)) == 0
    return output


def test_a_classifier_learns_tones(classification):
    results = json.loads((classification / "all_results.json").read_text())
    assert results["eval_accuracy"] >= 0.7  # chance is 0.25
    config = json.loads((classification / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c", "3": "d"}
    # The best and the newest are kept, though the limit is one.
    steps = [int(path.name) for path in (classification / "checkpoints").iterdir() if path.name.isdigit()]
    assert results["best_step"] in steps and 240 in steps and len(steps) <= 2


def test_a_clip_that_cannot_be_decoded_is_listed_and_the_run_goes_on(corpus, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = write_corpus(tmp_path / "broken")
    file = broken / "mls.all" / "train.parquet"
    table = pq.read_table(file)
    clips = table.to_pylist()
    # Damage past the header: the length can be read, the audio cannot.
    data = bytearray(clips[3]["audio"]["bytes"])
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    clips[3]["audio"]["bytes"] = bytes(data)
    clips[5]["transcription"] = ""
    pq.write_table(pa.Table.from_pylist(clips, schema=table.schema), file)
    output = tmp_path / "out"
    changes = dict(num_train_epochs=1, max_steps=None, save_strategy="no", do_eval=None)
    assert train.main(flags(broken, output, "mls.all", **changes, max_skipped_fraction=0.2)) == 0
    skipped = {row["clip"]: row["reason"] for row in rows(output / "skipped.jsonl")}
    assert set(skipped) == {"train/003.flac", "train/005.flac"}
    assert "empty" in skipped["train/005.flac"]
    strict = flags(broken, tmp_path / "strict", "mls.all", **changes)
    assert train.main(strict) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target_column_name": "sentence"}, "transcription"),
        ({"train_split_name": "trian"}, "did you mean train?"),
        ({"language": "xx", "dataset_config_name": None, "task": "mls"}, "de, pl"),
        ({"audio_column_name": "path"}, "audio"),
        ({"learning_rte": 1}, "learning_rate"),
        ({"config_name": "smal"}, "did you mean small?"),
        ({"config_name": None, "model_name_or_path": "nowhere/at-all"}, "nowhere/at-all"),
        ({"fsdp_devices": 3}, "fsdp_devices"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_do(corpus, tmp_path, capsys, changes, message):
    assert train.main(flags(corpus, tmp_path / "out", **{"config": "mls.all", **_config(changes)})) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    error = errors[errors.index("error: ") :]
    assert message in error


def _config(changes: dict) -> dict:
    return {("config" if name == "dataset_config_name" else name): value for name, value in changes.items()}


def test_a_model_of_another_architecture_is_refused(corpus, tmp_path, capsys):
    other = tmp_path / "hubert"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "hubert"}))
    (other / "model.safetensors").write_bytes(b"")
    changes = dict(config_name=None, model_name_or_path=other)
    assert train.main(flags(corpus, tmp_path / "out", "mls.all", **changes)) == 2
    assert "hubert" in capsys.readouterr().err


def test_a_signal_waits_until_the_last_checkpoint_is_on_the_disk():
    """As it may come from another process's machine than the one that all have stopped for."""
    written = []

    def write():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        written.append(1)

    with pytest.raises(Interrupted), StopRequest(shared=True) as stop:
        train.finish_writing(SimpleNamespace(wait=write), stop)
        assert written and stop.received == signal.SIGTERM
        stop.check()


def test_an_output_directory_in_use_is_refused(recognition, corpus, tmp_path, capsys):
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.tex").write_text("")
    assert train.main(flags(corpus, used, "mls.all")) == 2
    assert "thesis.tex" in capsys.readouterr().err

    import fcntl

    busy = tmp_path / "busy"
    busy.mkdir()
    with open(busy / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert train.main(flags(corpus, busy, "mls.all")) == 2
    assert "in use" in capsys.readouterr().err
