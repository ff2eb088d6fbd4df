"""Whole runs of speech translation on a small corpus of tones: learning, scoring, export, joining parts, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from corpora import write_corpus
from runs import flags, parameters, rows

from xtremes_jax import evaluate, load_model, train, translate
from xtremes_jax.data import audio

DECODER = {
    "model_type": "mbart", "d_model": 24, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "max_position_embeddings": 64, "scale_embedding": True, "dropout": 0.0, "vocab_size": 40, "init_std": 0.2,
}  # fmt: skip
TRANSLATION = dict(
    decoder_config_name="decoder.json", do_predict=True, translation_vocab_size=40, generation_max_length=24,
    mask_time_prob=0, max_steps=250, learning_rate=4e-3, warmup_ratio=0.1, logging_steps=50,
    per_device_train_batch_size=8, eval_split_name="train", label_smoothing_factor=0.05, generation_num_beams=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    (folder / "decoder.json").write_text(json.dumps(DECODER), encoding="utf-8")
    return folder


def arguments(corpus: Path, output: Path, **changes) -> list[str]:
    values = TRANSLATION | {"decoder_config_name": corpus / "decoder.json"} | changes
    return flags(corpus, output, "covost2.all", **values)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run")
    assert train.main(arguments(corpus, output)) == 0
    return output


def scoring(corpus: Path, output: Path, model: Path, **changes) -> list[str]:
    only_training = (
        "config_name do_train do_eval freeze_feature_encoder per_device_train_batch_size max_steps learning_rate "
        "logging_steps group_by_length dataset_config_name"
    ).split()
    values = dict.fromkeys(only_training) | {"model_name_or_path": model, "task": "covost2", "max_buckets": 1}
    return flags(corpus, output, None, **(values | changes))


def test_a_run_learns_its_training_sentences(finished):
    results = json.loads((finished / "all_results.json").read_text())
    assert results["eval_bleu"] > 30
    assert results["eval_bleu"] == pytest.approx((results["eval_bleu_de.en"] + results["eval_bleu_pl.en"]) / 2)
    assert results["train_compilations"] <= results["train_buckets"] <= 2
    assert 0 <= results["predict_cut_off_sentences"] <= results["predict_samples"]
    predictions = rows(finished / "predictions.jsonl")
    assert {row["language"] for row in predictions} == {"de.en", "pl.en"}


def test_scoring_a_run_gives_its_own_scores(finished, corpus, tmp_path):
    assert evaluate.main(scoring(corpus, tmp_path, finished)) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    trained = json.loads((finished / "all_results.json").read_text())
    assert results["loss"] == pytest.approx(trained["predict_loss"], rel=1e-4)
    assert results["bleu"] == trained["predict_bleu"]
    assert rows(tmp_path / "predictions.jsonl") == rows(finished / "predictions.jsonl")


def test_other_beams_and_lengths_can_be_asked_for(finished, corpus, tmp_path):
    assert evaluate.main(scoring(corpus, tmp_path, finished, generation_num_beams=1, generation_max_length=3)) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["cut_off_sentences"] == results["samples"]


def test_the_exported_model_writes_the_same_from_python(finished, corpus):
    test = [clip for clip in clips(corpus) if clip]
    texts = translate(finished, test)
    assert texts == [row["prediction"] for row in sorted(rows(finished / "predictions.jsonl"), key=sample_id)]


def test_transformers_writes_the_same(finished, corpus):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference here")
    import transformers

    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(finished).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(finished)
    expected = [row["prediction"] for row in sorted(rows(finished / "predictions.jsonl"), key=sample_id)]
    for file, text in zip(clips(corpus), expected, strict=True):
        waveform = audio.decode(file).astype(np.float32) / 2**15
        inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            written = model.generate(inputs.input_values)
        assert tokenizer.decode(written[0], skip_special_tokens=True).strip() == text


def clips(corpus: Path) -> list[bytes]:
    import pyarrow.parquet as pq

    return [row["bytes"] for row in pq.read_table(corpus / "covost2.all" / "test.parquet")["audio"].to_pylist()]


def sample_id(row: dict) -> int:
    return row["sample_id"]


def test_frozen_halves_stay_as_they_were(finished, corpus, tmp_path):
    def changed(part: str, **freeze) -> set[str]:
        output = tmp_path / part
        start = {"model_name_or_path": finished, "config_name": None, "decoder_config_name": None}
        short = {"max_steps": 2, "do_predict": None, "do_eval": None, "generation_num_beams": None}
        short |= {"generation_max_length": None, "eval_split_name": None, "translation_vocab_size": None}
        assert train.main(arguments(corpus, output, **start, **short, **freeze)) == 0
        before, after = parameters(finished), parameters(output)
        return {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}

    assert changed("encoder", freeze_encoder=True) == {"decoder", "enc_to_dec_proj"}
    assert changed("decoder", freeze_decoder=True) == {"encoder", "enc_to_dec_proj"}


def test_an_encoder_and_a_decoder_are_joined(finished, corpus, tmp_path):
    """The decoder of a directory of its own, its cross-attention drawn anew, before an adapter."""
    from safetensors.numpy import save_file

    config = json.loads((finished / "config.json").read_text())
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    tokens = {"decoder_start_token_id": 0}
    (decoder / "config.json").write_text(json.dumps(config["decoder"] | tokens))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (decoder / name).write_bytes((finished / name).read_bytes())
    theirs = {
        name.removeprefix("decoder."): value
        for name, value in parameters(finished).items()
        if name.startswith("decoder.") and "encoder_attn" not in name
    }
    save_file(theirs, decoder / "model.safetensors")
    output = tmp_path / "joined"
    command = arguments(
        corpus, output, decoder_config_name=None, decoder_name_or_path=decoder, max_steps=3, add_adapter=True,
        freeze_decoder=True, translation_vocab_size=None,
    )  # fmt: skip
    assert train.main(command) == 0
    joined = parameters(output)
    assert any(name.startswith("encoder.adapter.") for name in joined)
    for name, value in theirs.items():
        np.testing.assert_array_equal(joined[f"decoder.{name}"], value)
    assert load_model(output).config.encoder.add_adapter


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_config_name": None}, "needs a decoder"),
        ({"decoder_name_or_path": "somewhere"}, "exclude each other"),
        ({"predict_with_generate": False}, "leaves nothing to score"),
        ({"language": "fr.en", "dataset_config_name": None, "task": "covost2"}, "fr.en"),
        ({"decoder_config_name": "smal"}, "did you mean small"),
        ({"translation_vocab_size": 8}, "translation_vocab_size"),
        ({"freeze_encoder": True, "freeze_decoder": True, "decoder_config_name": "WIDE"}, "nothing to train"),
    ],
)
def test_what_cannot_work_is_refused(corpus, tmp_path, capsys, changes, message):
    if changes.get("decoder_config_name") == "WIDE":  # as wide as the encoder: there is no projection between them
        (corpus / "wide.json").write_text(json.dumps(DECODER | {"d_model": 32}), encoding="utf-8")
        changes = changes | {"decoder_config_name": corpus / "wide.json"}
    assert train.main(arguments(corpus, tmp_path / "run", **changes)) == 2
    assert message in capsys.readouterr().err


def test_a_random_decoder_ends_and_pads_as_its_own_tokenizer_does(corpus, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "one", "two", "three", "four", "and"]
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    output = tmp_path / "run"
    changes = {"tokenizer_name_or_path": tmp_path / "tokenizer", "translation_vocab_size": None, "max_steps": 2}
    assert train.main(arguments(corpus, output, **changes)) == 0
    wanted = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 1}
    config, generation = (json.loads((output / f"{name}.json").read_text()) for name in ("config", "generation_config"))
    assert wanted.items() <= config.items() and wanted.items() <= generation.items()
    assert generation["forced_eos_token_id"] == 1 and generation["forced_bos_token_id"] is None


def test_an_adapter_is_not_put_between_halves_that_were_trained_without(finished, corpus, tmp_path, capsys):
    start = {"model_name_or_path": finished, "config_name": None, "decoder_config_name": None}
    command = arguments(corpus, tmp_path, add_adapter=True, translation_vocab_size=None, **start)
    assert train.main(command) == 2
    assert "was trained without one" in capsys.readouterr().err


def test_a_tokenizer_of_another_vocabulary_is_refused(finished, corpus, tmp_path, capsys):
    from xtremes_jax.data.subwords import learn_tokenizer

    learn_tokenizer(["other words altogether, and many more of them"] * 3, vocab_size=90).save_pretrained(tmp_path)
    command = scoring(corpus, tmp_path / "out", finished, tokenizer_name_or_path=tmp_path)
    assert evaluate.main(command) == 2
    assert "do not belong together" in capsys.readouterr().err


def test_a_decoder_without_a_start_token_is_refused(finished, corpus, tmp_path, capsys):
    import shutil

    model = shutil.copytree(finished, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["decoder_start_token_id"] = config["decoder"]["decoder_start_token_id"] = None
    (model / "config.json").write_text(json.dumps(config))
    assert evaluate.main(scoring(corpus, tmp_path / "out", model)) == 2
    assert "start token" in capsys.readouterr().err


def test_a_translation_model_is_for_translation_alone(finished, corpus, tmp_path, capsys):
    assert evaluate.main(scoring(corpus, tmp_path / "out", finished, task="mls")) == 2
    assert "--task covost2" in capsys.readouterr().err
