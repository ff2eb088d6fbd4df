"""Pairs of utterances: which there are, and how an epoch puts them into batches."""

from types import SimpleNamespace

import numpy as np
import pytest

from xtremes_jax.data.loader import TrainLoader
from xtremes_jax.data.pairs import Pairs, find_pairs, pair_edges, pair_lengths, plan_pairs
from xtremes_jax.errors import InputError


def split_of(sentences, languages):
    """What `find_pairs` looks at of a prepared split."""
    count = len(sentences)
    return SimpleNamespace(
        name="train",
        references=[str(sentence) for sentence in sentences],
        languages=list(languages),
        clip_names=[f"clip {i}" for i in range(count)],
        rows=10 * np.arange(count),
        raw=SimpleNamespace(target_column="id"),
    )


def random_pairs(rng, sentences=40, languages=3):
    """A corpus in which some sentences have two English utterances or are said twice in another language."""
    ids, spoken = [], []
    for sentence in range(sentences):
        for language in ["en_us", *(f"l{i}" for i in range(languages))]:
            times = rng.integers(1, 3)
            ids += [sentence] * times
            spoken += [language] * times
    order = rng.permutation(len(ids))
    split = split_of([ids[i] for i in order], [spoken[i] for i in order])
    pairs, alone = find_pairs(split, "en")
    assert not alone
    lengths = rng.integers(3_000, 90_000, len(ids))
    return split, pairs, lengths


def test_queries_are_the_other_languages_and_keys_are_english():
    split = split_of([7, 7, 8, 9, 7, 8, 5], ["en_us", "fr_fr", "en_us", "de_de", "en_gb", "fr_fr", "en_us"])
    pairs, alone = find_pairs(split, "en")
    assert pairs.queries.tolist() == [1, 5]
    assert [pairs.keys[s].tolist() for s in pairs.sentences] == [[0, 4], [2]]
    assert [(clip.sample_id, clip.clip) for clip in alone] == [(30, "clip 3")]
    assert "sentence 9" in alone[0].reason
    pairs, alone = find_pairs(split, "en_us")  # one variety of English alone: the other one asks
    assert pairs.queries.tolist() == [1, 4, 5] and len(alone) == 1


@pytest.mark.parametrize(
    ("sentences", "languages", "message"),
    [
        ([1, 2], ["fr_fr", "de_de"], "no utterance in the key language.*--key_language"),
        ([1, 2], ["en_us", "en_us"], "other than that of the keys.*--language all"),
        ([1, 2], ["en_us", "fr_fr"], "none of its 1 utterances.*--target_column_name"),
    ],
)
def test_a_split_without_pairs_is_refused(sentences, languages, message):
    with pytest.raises(InputError, match=message):
        find_pairs(split_of(sentences, languages), "en")


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("rows", [2, 8, 32, 200])
def test_an_epoch_has_every_query_once_beside_a_key_of_its_sentence(rng, grouped, rows):
    split, pairs, lengths = random_pairs(rng)
    edges = pair_edges(lengths, pairs, batch_size=rows, group_by_length=grouped, max_buckets=5)
    steps = set()
    for epoch in range(4):
        batches = plan_pairs(lengths, edges, pairs=pairs, batch_size=rows, seed=3, epoch=epoch, group_by_length=grouped)
        steps.add(len(batches))
        queries = np.concatenate([batch.indices[0::2] for batch in batches])
        assert sorted(queries) == sorted(pairs.queries)
        for batch in batches:
            one, other = batch.indices[0::2], batch.indices[1::2]
            sentences = [split.references[i] for i in one]
            assert sentences == [split.references[i] for i in other]
            assert len(set(sentences)) == len(sentences)  # no false negatives
            assert all(split.languages[i] == "en_us" for i in other)
            assert not any(split.languages[i] == "en_us" for i in one)
            assert batch.rows == rows and 2 <= len(batch.indices) <= rows
            assert lengths[batch.indices].max() <= batch.bucket_samples and batch.bucket_samples in edges
        if epoch == 0:
            assert batches[0].bucket_samples == max(batch.bucket_samples for batch in batches)
    commonest = np.bincount(pairs.sentences).max()
    assert steps == {max(-(-len(pairs.queries) // (rows // 2)), commonest)}


def test_the_plan_is_a_pure_function_of_seed_and_epoch(rng):
    _, pairs, lengths = random_pairs(rng)
    edges = pair_edges(lengths, pairs, batch_size=16, group_by_length=True, max_buckets=4)

    def plan(seed, epoch):
        batches = plan_pairs(lengths, edges, pairs=pairs, batch_size=16, seed=seed, epoch=epoch)
        return [(batch.indices.tolist(), batch.bucket_samples) for batch in batches]

    assert plan(1, 5) == plan(1, 5)
    assert plan(1, 5) != plan(1, 6) != plan(2, 6)


def test_keys_take_turns(rng):
    pairs = Pairs(np.array([0]), np.array([0]), (np.array([1, 2, 3]),))
    lengths = np.array([500, 400, 600, 700])
    assert pair_lengths(lengths, pairs).tolist() == [700]
    drawn = [plan_pairs(lengths, [960], pairs=pairs, batch_size=2, epoch=e)[0].indices[1] for e in range(60)]
    assert min(drawn.count(key) for key in (1, 2, 3)) >= 10


def test_crowded_sentences_change_places(rng):
    # One sentence in six of nine queries: three batches of three would need it twice each.
    sentences = np.array([0] * 6 + [1, 2, 3])
    pairs = Pairs(np.arange(9), sentences, tuple(np.array([9 + s]) for s in range(4)))
    lengths = np.r_[rng.integers(1000, 90_000, 9), [800, 900, 1000, 1100]]
    for epoch in range(30):
        batches = plan_pairs(lengths, [96_000], pairs=pairs, batch_size=6, epoch=epoch)
        assert len(batches) == 6
        for batch in batches:
            assert len(set(batch.indices[1::2])) == len(batch.indices) // 2 > 0


def test_grouping_by_length_pads_less(rng):
    _, pairs, _ = random_pairs(rng, sentences=200)
    # Utterances of a sentence are about equally long.
    lengths = np.zeros(max(pairs.queries.max(), *(keys.max() for keys in pairs.keys)) + 1, np.int64)
    for sentence, keys in enumerate(pairs.keys):
        base = rng.integers(5_000, 90_000)
        lengths[keys] = base + rng.integers(0, 2_000, len(keys))
        chosen = pairs.queries[pairs.sentences == sentence]
        lengths[chosen] = base + rng.integers(0, 2_000, len(chosen))
    padded = {}
    for grouped in (True, False):
        edges = pair_edges(lengths, pairs, batch_size=32, group_by_length=grouped, max_buckets=6)
        batches = plan_pairs(lengths, edges, pairs=pairs, batch_size=32, group_by_length=grouped)
        padded[grouped] = sum(batch.rows * batch.bucket_samples for batch in batches)
    audio = sum(int(lengths[batch.indices].sum()) for batch in batches)
    assert padded[True] < 1.35 * audio < padded[False]


@pytest.mark.parametrize(
    "change", [{"batch_size": 6, "multiple": 2}, {"drop_last": True}, {"max_batch_samples": 10**6}]
)
def test_the_loader_refuses_what_pairs_cannot_have(rng, change):
    _, pairs, lengths = random_pairs(rng)
    split = SimpleNamespace(name="train", num_samples=lengths)
    with pytest.raises(ValueError, match="pairs need"):
        options = {"batch_size": None if "max_batch_samples" in change else 8, **change}
        TrainLoader(split, pairs=pairs, **options)


def test_odd_batches_and_clips_without_a_bucket_are_refused(rng):
    _, pairs, lengths = random_pairs(rng)
    with pytest.raises(ValueError, match="two rows"):
        plan_pairs(lengths, [96_000], pairs=pairs, batch_size=3)
    with pytest.raises(ValueError, match="longer than the last"):
        plan_pairs(lengths, [3_200], pairs=pairs, batch_size=4)
