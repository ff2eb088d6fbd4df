"""Pairs for retrieval: which utterances are keys, which are their queries, and which pairs make up a batch.

A query is an utterance in any other language, its key an English utterance of the same sentence. Each epoch pairs every
query with one key of its sentence, drawn anew, and no batch holds a sentence twice: every other pair is a true
negative. All of it is a pure function of (seed, epoch, lengths, sentences), as in `buckets.py`; nothing depends on
hosts, devices or workers, and every epoch has the same number of batches, so a position is one integer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xtremes_jax.data.buckets import PlannedBatch, batch_edges
from xtremes_jax.data.prepare import PreparedSplit, SkippedClip
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import is_key_language

_NAMED = 10  # languages named in a message


@dataclass(frozen=True)
class Pairs:
    """What can be paired in a split, by position in the split (0 to N - 1)."""

    queries: np.ndarray
    """`[queries]` int64: utterances in other languages that have a key."""
    sentences: np.ndarray
    """`[queries]` int64: the sentence of each query, 0 to S - 1."""
    keys: tuple[np.ndarray, ...]
    """S arrays int64: the English utterances of each sentence, none of them empty."""

    @property
    def steps_per_epoch_at_least(self) -> int:
        """How often the commonest sentence comes: no fewer batches can hold it without holding it twice."""
        return int(np.bincount(self.sentences).max())


def find_pairs(split: PreparedSplit, key_language: str) -> tuple[Pairs, list[SkippedClip]]:
    """Pairs of a split whose `references` are sentence ids, and the queries that have no key.

    Raises:
        InputError: no utterance is in the key language, or none in another, or they have no sentence in common.
    """
    is_key = np.array([is_key_language(language, key_language) for language in split.languages], bool)
    _refuse_one_sided(split, is_key, key_language)
    keys: dict[str, list[int]] = {}
    for position in np.flatnonzero(is_key):
        keys.setdefault(split.references[position], []).append(int(position))
    numbers: dict[str, int] = {}
    queries, sentences, alone = [], [], []
    for position in map(int, np.flatnonzero(~is_key)):
        sentence = split.references[position]
        if sentence not in keys:
            reason = f"no utterance of its sentence {sentence} is in the key language ({key_language})"
            name, row = split.clip_names[position], int(split.rows[position])
            alone.append(SkippedClip(split.name, row, name, reason))
            continue
        queries.append(position)
        sentences.append(numbers.setdefault(sentence, len(numbers)))
    if not queries:
        raise InputError(
            f"Split {split.name}: none of its {len(alone)} utterances in other languages has one in the key language "
            f"({key_language}) of the same sentence, by column {split.raw.target_column}. Check that this column "
            "(--target_column_name) holds the same id for the same sentence in every language."
        )
    found = tuple(np.array(keys[sentence], np.int64) for sentence in numbers)
    return Pairs(np.array(queries, np.int64), np.array(sentences, np.int64), found), alone


def _refuse_one_sided(split: PreparedSplit, is_key: np.ndarray, key_language: str) -> None:
    languages = sorted(set(split.languages))
    shown = ", ".join(languages[:_NAMED]) + (", …" if len(languages) > _NAMED else "")
    if not is_key.any():
        raise InputError(
            f"Split {split.name} has no utterance in the key language ({key_language}), so nothing can be retrieved. "
            f"Its languages: {shown}. Choose data that hold it too, raise the limit on samples if there is one, or "
            "name another language with --key_language."
        )
    if is_key.all():
        raise InputError(
            f"Split {split.name} has no utterance in a language other than that of the keys ({shown}), so there is "
            "nothing to look for. Use --language all, or a language beside that of the keys."
        )


def pair_lengths(num_samples: np.ndarray, pairs: Pairs) -> np.ndarray:
    """`[queries]` int64: the longest that each query's pair can be, in samples: with the longest of its keys."""
    longest_key = np.array([num_samples[keys].max() for keys in pairs.keys], np.int64)
    return np.maximum(num_samples[pairs.queries], longest_key[pairs.sentences])


def pair_edges(
    num_samples: np.ndarray, pairs: Pairs, *, batch_size: int, group_by_length: bool, max_buckets: int
) -> np.ndarray:
    """`[buckets]` padded lengths for batches of `batch_size` rows (two a pair), as `buckets.batch_edges` has them."""
    return batch_edges(
        pair_lengths(num_samples, pairs),
        batch_size=max(1, batch_size // 2),
        group_by_length=group_by_length,
        max_buckets=max_buckets,
    )


def plan_pairs(
    num_samples: np.ndarray,
    edges: np.ndarray,
    *,
    pairs: Pairs,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    group_by_length: bool = True,
) -> list[PlannedBatch]:
    """The batches of one epoch: every query once, beside one key of its sentence, no sentence twice in a batch.

    Pairs are shuffled, then (with grouping) sorted by bucket, longest first; each goes into the first batch that has
    room and not yet its sentence. Where that would take more batches than every epoch has, two pairs change places. The
    batches are then shuffled; in epoch 0 one of the longest bucket goes first.

    Args:
      num_samples: `[clips]` lengths in samples.
      edges: `[buckets]` ascending padded lengths in samples, from `pair_edges`.
      pairs: what can be paired.
      batch_size: rows of the global batch, two for each pair.
      seed, epoch: the only source of randomness.
      group_by_length: batches of pairs of one bucket; otherwise of pairs drawn at random.

    Returns:
      Batches whose `indices` alternate between query and key. There are as many as the pairs fill, or as the commonest
      sentence needs, in every epoch.

    Raises:
      ValueError: an odd number of rows, or a clip longer than the last edge.
    """
    if batch_size < 2 or batch_size % 2:
        raise ValueError(f"batch_size={batch_size}: a pair takes two rows")
    edges = np.asarray(edges, np.int64)
    random = np.random.default_rng([seed, epoch])
    choice = random.random(len(pairs.queries))
    keys = np.array(
        [pairs.keys[s][int(c * len(pairs.keys[s]))] for s, c in zip(pairs.sentences, choice, strict=True)], np.int64
    )
    lengths = np.maximum(num_samples[pairs.queries], num_samples[keys])
    if lengths.max() > edges[-1]:
        raise ValueError(f"a clip of {lengths.max()} samples is longer than the last bucket edge, {edges[-1]}")
    bucket = np.searchsorted(edges, lengths)
    order = random.permutation(len(keys))
    if group_by_length:
        order = order[np.argsort(-bucket[order], kind="stable")]
    batches = []
    for members in _fill(order, pairs, batch_size // 2):
        rows = np.stack([pairs.queries[members], keys[members]], axis=1).reshape(-1)
        batches.append(PlannedBatch(rows, int(edges[bucket[members].max()]), batch_size))
    batches = [batches[i] for i in random.permutation(len(batches))]
    if epoch == 0:
        longest = max(range(len(batches)), key=lambda i: batches[i].bucket_samples)
        batches[0], batches[longest] = batches[longest], batches[0]
    return batches


def _fill(order: np.ndarray, pairs: Pairs, size: int) -> list[list[int]]:
    """Batches of at most `size` pairs, of distinct sentences; none is empty.

    There are `max(ceil(pairs / size), how often the commonest sentence comes)`, which always suffices (see `_swap`).
    """
    sentences = pairs.sentences
    count = max(-(-len(order) // size), pairs.steps_per_epoch_at_least)
    batches: list[list[int]] = [[] for _ in range(count)]
    held: list[set[int]] = [set() for _ in range(count)]
    # Every batch before the last one with this sentence is full or has it too: nothing is to be found there.
    next_of_sentence: dict[int, int] = {}
    first_open = 0
    for pair in map(int, order):
        sentence = int(sentences[pair])
        place = max(first_open, next_of_sentence.get(sentence, 0))
        while place < count and (len(batches[place]) == size or sentence in held[place]):
            place += 1
        if place == count:
            place = _swap(sentence, sentences, batches, held, size)
        else:
            next_of_sentence[sentence] = place + 1
        batches[place].append(pair)
        held[place].add(sentence)
        while first_open < count and len(batches[first_open]) == size:
            first_open += 1
    _spread(batches, held, sentences)
    return batches


def _swap(sentence: int, sentences: np.ndarray, batches: list[list[int]], held: list[set[int]], size: int) -> int:
    """Makes room for a sentence that every batch with room already holds; the batch that can take it.

    A full batch without the sentence exists, or the sentence would come more often than there are batches; and one of
    its pairs is of a sentence that a batch with room lacks, or that one would be full too. The last such batches are
    taken: with grouping by length they are the nearest to each other.
    """
    room = max(place for place, batch in enumerate(batches) if len(batch) < size)
    full = max(place for place, known in enumerate(held) if sentence not in known)
    mover = next(pair for pair in reversed(batches[full]) if int(sentences[pair]) not in held[room])
    batches[full].remove(mover)
    held[full].remove(int(sentences[mover]))
    batches[room].append(mover)
    held[room].add(int(sentences[mover]))
    return full


def _spread(batches: list[list[int]], held: list[set[int]], sentences: Sequence[int]) -> None:
    """Moves pairs of the fullest batches to those of less than two: one pair alone has no negatives to learn from."""
    for place, batch in enumerate(batches):
        while len(batch) < 2 <= max(map(len, batches)) - len(batch):
            fullest = max(range(len(batches)), key=lambda other: len(batches[other]))
            mover = next((p for p in batches[fullest] if int(sentences[p]) not in held[place]), None)
            if mover is None:
                break
            batches[fullest].remove(mover)
            held[fullest].remove(int(sentences[mover]))
            batch.append(mover)
            held[place].add(int(sentences[mover]))
