"""A corpus of lengths alone: what the loader makes of it, for every kind of task."""

import json

import numpy as np
import pytest

from xtremes_jax.architecture import model_config
from xtremes_jax.arguments import parse_arguments
from xtremes_jax.data.loader import TrainLoader
from xtremes_jax.errors import InputError
from xtremes_jax.models import PRESETS
from xtremes_jax.planned_corpus import VOCABULARY, assumptions, planned_corpus
from xtremes_jax.starting import starting_point


def corpus_of(buckets, *flags, task="mls", devices=4):
    line = ["--config_name", "tiny", "--task", task, "--output_dir", "x", "--do_train", "--do_eval", *flags]
    arguments = parse_arguments(line)
    translation = arguments.selection.task.kind == "translation"
    start = starting_point(arguments.model, translation=translation, weights=False)
    corpus = planned_corpus(arguments, start, buckets, devices)
    return arguments, start, corpus


def test_a_length_alone_is_one_batch_and_a_number_says_how_many():
    _, _, corpus = corpus_of(["20", "5:70", "2.5"], "--gradient_accumulation_steps", "3")
    lengths, counts = np.unique(corpus.splits["train"].num_samples, return_counts=True)
    assert dict(zip(lengths.tolist(), counts.tolist(), strict=True)) == {40_000: 8 * 12, 80_000: 70, 320_000: 8 * 12}
    assert {len(labels) for labels in corpus.splits["train"].labels} == {40, 80, 320}
    assert np.unique(corpus.splits["eval"].num_samples, return_counts=True)[1].tolist() == [32, 32, 32]


def test_batches_sized_by_seconds():
    _, _, corpus = corpus_of(["4", "10"], "--max_batch_seconds", "20", "--max_duration_in_seconds", "12")
    assert np.unique(corpus.splits["train"].num_samples, return_counts=True)[1].tolist() == [5 * 4, 2 * 4]


def test_every_length_is_a_bucket_of_a_run_that_groups_by_length():
    _, _, corpus = corpus_of(["5", "10", "15", "20"])
    loader = TrainLoader(corpus.splits["train"], batch_size=32, multiple=4, group_by_length=True)
    assert loader.edges.tolist() == [80_000, 160_000, 240_000, 320_000] and loader.steps_per_epoch == 4
    assert loader.shapes(0, 4)[0].audio.shape == (32, 320_000)


def test_vocabulary_and_classes():
    arguments, start, corpus = corpus_of(["5"])
    assert model_config(arguments, start, corpus).vocab_size == VOCABULARY == len(corpus.tokenizer)
    assert "64 characters" in assumptions(arguments)[0] and len(assumptions(arguments)) == 1
    arguments, start, corpus = corpus_of(["5"], task="fleurs-lang_id")
    assert model_config(arguments, start, corpus).num_labels == 102
    assert {len(labels) for labels in corpus.splits["train"].labels} == {1}
    assert corpus_of(["5"], task="minds14")[2].label_names == [str(place) for place in range(14)]


def test_translation_learns_as_large_a_vocabulary_as_the_run_would():
    arguments, start, corpus = corpus_of(["4", "29.99"], "--decoder_config_name", "tiny", task="covost2")
    assert model_config(arguments, start, corpus).vocab_size == len(corpus.tokenizer) == 1000
    assert {len(labels) for labels in corpus.splits["train"].labels} == {21, 151}


def test_retrieval_has_pairs():
    arguments, start, corpus = corpus_of(["4:64", "8"], task="fleurs-retrieval")
    pairs = corpus.pairs
    assert sorted([*pairs.queries, *np.concatenate(pairs.keys)]) == list(range(len(corpus.splits["train"])))
    loader = TrainLoader(corpus.splits["train"], batch_size=32, multiple=4, pairs=pairs, group_by_length=True)
    assert {batch.bucket_samples for batch in loader.plan(0)} == {64_000, 128_000}
    assert {len(labels) for labels in corpus.splits["train"].labels} == {0}


def test_flags_of_the_data_that_change_nothing_are_named():
    arguments = corpus_of(["5"], "--max_train_samples", "7", "--max_eval_samples", "7")[0]
    assert assumptions(arguments)[1].endswith("so --max_train_samples, --max_eval_samples changed nothing")


def test_a_tokenizer_that_is_there_is_taken(tmp_path):
    vocabulary = {token: place for place, token in enumerate(["[PAD]", "[UNK]", "|", *"abcdefg"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    config = {"unk_token": "[UNK]", "pad_token": "[PAD]", "word_delimiter_token": "|"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    arguments, _, corpus = corpus_of(["5"], "--tokenizer_name_or_path", str(tmp_path))
    assert set(vocabulary) <= set(corpus.tokenizer.get_vocab()) and "the tokenizer's" in assumptions(arguments)[0]


def test_a_directory_need_not_hold_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["tiny"].to_huggingface()), "utf-8")
    arguments = parse_arguments(
        ["--model_name_or_path", str(tmp_path), "--task", "mls", "--output_dir", "x", "--do_train"]
    )
    start = starting_point(arguments.model, weights=False)
    corpus = planned_corpus(arguments, start, ["5"], 1)
    assert model_config(arguments, start, corpus).hidden_size == PRESETS["tiny"].hidden_size


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        (["0"], "0 is no length"), (["-5"], "-5 is no length"), (["5:0"], "5:0 is no length"), (["a"], "a is no"),
        (["5:"], "5: is no length"), (["5:2.5"], "is no length"), (["nan"], "is no"), (["٥"], "is no length"),
        (["1e3"], "is no length"), (["31"], "longer than --max_duration_in_seconds 30"),
        (["5", "5.0:3"], "5.0:3 is given twice"), (["0.01"], "too short for one frame"),
    ],
)  # fmt: skip
def test_lengths_that_make_no_sense_are_refused(buckets, said):
    with pytest.raises(InputError, match=said):
        corpus_of(buckets)


def test_what_the_run_would_filter_out_is_refused():
    with pytest.raises(InputError, match="2 is no longer than --min_duration_in_seconds 2"):
        corpus_of(["2", "3"], "--min_duration_in_seconds", "2")
    corpus_of(["2.1", "3"], "--min_duration_in_seconds", "2")


def test_one_clip_makes_no_pair():
    with pytest.raises(InputError, match="4:1 is one clip, and a pair for retrieval is two"):
        corpus_of(["4:1"], task="fleurs-retrieval")
