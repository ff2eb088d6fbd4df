"""Whole runs of retrieval on a small corpus of tones: they learn, are scored again alike, and refuse what cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
from retrieval_corpus import write_distractors, write_retrieval_corpus
from runs import flags, parameters, rows

from xtremes_jax import evaluate, load_model, train

RUN = dict(
    task="fleurs-retrieval", do_predict=True, max_steps=60, learning_rate=3e-3, per_device_train_batch_size=16,
    per_device_eval_batch_size=8, embedding_dim=24, mask_time_prob=0, max_buckets=1, logging_steps=20,
    save_strategy="no", write_embeddings=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_retrieval_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory) -> Path:
    """A finished run that other tests look at."""
    output = tmp_path_factory.mktemp("run")
    assert train.main(flags(corpus, output, "fleurs.all", **RUN)) == 0
    return output


def again(corpus, output, run, **changes) -> int:
    """Scores a run with `xtremes_jax.evaluate`."""
    trains = "config_name do_train do_eval freeze_feature_encoder per_device_train_batch_size max_steps learning_rate "
    trains += "logging_steps group_by_length"
    values = dict.fromkeys(trains.split()) | {"model_name_or_path": run, "task": "fleurs-retrieval"}
    values |= {"per_device_eval_batch_size": 5, "max_buckets": 2, "config": "fleurs.all", **changes}
    return evaluate.main(flags(corpus, output, values.pop("config"), **values))


def results_of(output: Path, name: str = "results.json") -> dict:
    return json.loads((output / name).read_text())


def test_a_run_learns_and_writes_everything(run):
    results = results_of(run, "all_results.json")
    assert results["predict_samples"] == 25 and results["predict_keys"] == 12  # one in French comes twice
    assert results["predict_chance_p_at_1"] == pytest.approx(1 / 12)
    assert results["predict_p_at_1"] >= 5 * results["predict_chance_p_at_1"]
    assert results["predict_p_at_5"] >= results["predict_p_at_1"]
    assert 0 < results["predict_loss"] < np.log(12) and results["predict_mrr"] < 1.0001
    for metric in ("p_at_1", "p_at_5", "mrr", "xsim_error"):
        languages = [results[f"predict_{metric}_{language}"] for language in ("de_de", "fr_fr")]
        assert results[f"predict_{metric}"] == pytest.approx(np.mean(languages))
    predictions = rows(run / "predictions.jsonl")
    assert len(predictions) == 25 and {row["language"] for row in predictions} == {"de_de", "fr_fr"}
    found = [row["rank"] == 1 for row in predictions]
    assert found == [row["reference"] == row["prediction"] for row in predictions]
    skipped = rows(run / "skipped.jsonl")
    assert {row["split"] for row in skipped} == {"train", "validation", "test"}
    assert all("key language (en)" in row["reason"] for row in skipped) and len(skipped) == 6
    card = (run / "README.md").read_text()
    assert "feature-extraction" in card and "speech retrieval" in card and "| p_at_1 |" in card


def test_embeddings_are_written_out(run):
    for name, count in (("embeddings.npz", 37), ("eval_embeddings.npz", 37)):
        with np.load(run / name, allow_pickle=False) as stored:
            embeddings, ids, languages, sentences = (
                stored[key] for key in ("embeddings", "ids", "languages", "sentence_ids")
            )
        assert embeddings.shape == (count, 24) and embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
        assert len(set(ids)) == count and set(languages) == {"de_de", "en_us", "fr_fr"} and "" not in sentences
    # The scores can be had from them.
    with np.load(run / "embeddings.npz", allow_pickle=False) as stored:
        keys = stored["languages"] == "en_us"
        nearest = (stored["embeddings"][~keys] @ stored["embeddings"][keys].T).argmax(axis=1)
        right = stored["sentence_ids"][keys][nearest] == stored["sentence_ids"][~keys]
        shares = [right[stored["languages"][~keys] == language].mean() for language in ("de_de", "fr_fr")]
    assert np.mean(shares) == pytest.approx(results_of(run, "all_results.json")["predict_p_at_1"])


def test_scoring_a_run_gives_its_own_scores(run, corpus, tmp_path):
    assert again(corpus, tmp_path, run) == 0
    results, trained = results_of(tmp_path), results_of(run, "all_results.json")
    for name in ("p_at_1", "p_at_5", "mrr", "xsim_error", "p_at_1_de_de", "chance_p_at_1", "keys", "samples"):
        assert results[name] == trained[f"predict_{name}"], name
    assert results["loss"] == pytest.approx(trained["predict_loss"], rel=1e-4)
    assert not (tmp_path / "embeddings.npz").exists()


def test_one_language_brings_its_keys(run, corpus, tmp_path):
    assert again(corpus, tmp_path, run, config="fleurs.fr_fr") == 0
    results, trained = results_of(tmp_path), results_of(run, "all_results.json")
    assert results["p_at_1"] == results["p_at_1_fr_fr"] == trained["predict_p_at_1_fr_fr"]
    assert (results["samples"], results["keys"]) == (13, 12)


def test_other_keys_and_pooled_scores(run, corpus, tmp_path):
    assert again(corpus, tmp_path, run, key_language="fr", per_lang_metrics=False) == 0
    results = results_of(tmp_path)
    assert (results["samples"], results["keys"]) == (24, 13) and "p_at_1_de_de" not in results
    assert results["chance_p_at_1"] == pytest.approx((11 + 2) / 12 / 13)  # the first sentence has two keys


def test_distractors_enlarge_the_pool(run, corpus, tmp_path):
    more = write_distractors(tmp_path / "more")
    out = tmp_path / "out"
    changes = dict(distractor_dataset_name=more, distractor_dataset_config_name="more", write_embeddings=True)
    assert again(corpus, out, run, **changes) == 0
    results, trained = results_of(out), results_of(run, "all_results.json")
    assert results["keys"] == 12 + 9 and results["samples"] == 25  # the German ones are left out
    assert results["chance_p_at_1"] == pytest.approx(1 / 21)
    assert results["p_at_1"] <= trained["predict_p_at_1"] and results["mrr"] <= trained["predict_mrr"]
    with np.load(out / "embeddings.npz", allow_pickle=False) as stored:
        assert (stored["sentence_ids"] == "").sum() == 9 and len(stored["ids"]) == 46


def test_the_python_surface_gives_unit_embeddings(run):
    model = load_model(run)
    assert (model.config.head, model.tokenizer, model.label_names) == ("retrieval", None, None)
    raw = np.random.default_rng(0).integers(-3000, 3000, (2, 9000)).astype(np.int16)
    output = model(raw, np.array([9000, 5000]))
    assert output.logits.shape == (2, 24) and output.logit_lengths is None
    np.testing.assert_allclose(np.linalg.norm(output.logits, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model(raw[1:, :5000]).logits[0], output.logits[1], atol=1e-5)
    config = json.loads((run / "config.json").read_text())
    assert config["xtremes_jax_head"] == "retrieval" and "logit_scale" not in parameters(run)
    assert float(output.logit_scale) == pytest.approx(config["logit_scale"], abs=1e-7) != np.log(1 / 0.07)


def test_transformers_loads_what_comes_out(run):
    torch = pytest.importorskip("torch")
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    theirs, info = AutoModelForAudioClassification.from_pretrained(run, output_loading_info=True)
    assert not any(info.values())
    raw = np.random.default_rng(0).integers(-3000, 3000, 9000).astype(np.int16)
    inputs = AutoFeatureExtractor.from_pretrained(run)(
        raw.astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        logits = theirs(inputs.input_values).logits[0]
    embedding = load_model(run)(raw[None]).logits[0]
    np.testing.assert_allclose(embedding, logits / logits.norm(), atol=1e-5)


def test_training_goes_on_from_a_run_with_its_temperature_and_width(run, corpus, tmp_path):
    changes = RUN | dict(
        config_name=None, model_name_or_path=run, embedding_dim=None, max_steps=1, learning_rate=0, do_predict=None
    )
    assert train.main(flags(corpus, tmp_path, "fleurs.all", **changes)) == 0
    before, after = parameters(run), parameters(tmp_path)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    before, after = (json.loads((path / "config.json").read_text()) for path in (run, tmp_path))
    assert before["logit_scale"] == after["logit_scale"] and after["num_labels"] == 24


def test_margin_loss_accumulation_and_half_precision_run(corpus, tmp_path):
    changes = RUN | dict(
        retrieval_loss="margin", retrieval_negatives=5, retrieval_margin=0.3, gradient_accumulation_steps=2,
        per_device_train_batch_size=8, max_steps=3, fp16=True, do_predict=None, do_eval=None, write_embeddings=None,
        logging_steps=1, use_weighted_layer_sum=True,
    )  # fmt: skip
    assert train.main(flags(corpus, tmp_path, "fleurs.all", **changes)) == 0
    losses = [row["loss"] for row in rows(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert 0.05 < losses[0] < 0.6  # cosines near 1 at first: the margin
    assert len(losses) == 3 and all(0.0 < loss < 0.6 for loss in losses)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_language": "it"}, "no utterance in the key language (it)"),
        ({"max_train_samples": 12}, "no utterance in the key language (en)"),
        ({"target_column_name": "path"}, "none of its 27 utterances"),
        ({"target_column_name": "sentence"}, "no such column"),
        ({"target_column_name": "audio"}, "holds audio, but --task fleurs-retrieval needs the ids of sentences"),
        ({"per_device_train_batch_size": 2}, "makes one pair an update, which has no negatives to learn from"),
        ({"distractor_dataset_name": "nowhere/at-all"}, "The distractors (--distractor_dataset_name nowhere/at-all)"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(corpus, tmp_path, capsys, changes, message):
    values = {"config": "fleurs.all", **RUN, **changes}
    assert train.main(flags(corpus, tmp_path / "out", values.pop("config"), **values)) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors and message in errors[errors.index("error: ") :]


def test_keys_alone_are_refused(run, corpus, tmp_path, capsys):
    assert again(corpus, tmp_path, run, config="fleurs.en_us") == 2
    assert "nothing to look for. Use --language all" in capsys.readouterr().err


def test_a_model_that_was_not_trained_for_retrieval_is_not_scored(run, corpus, tmp_path, capsys):
    other = tmp_path / "classifier"
    other.mkdir()
    config = json.loads((run / "config.json").read_text())
    del config["xtremes_jax_head"]
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    assert again(corpus, tmp_path / "out", other) == 2
    assert "was not trained for retrieval" in capsys.readouterr().err
