"""CTC decoding against plain Python: loops, a dictionary of prefixes, and the sum over all alignments."""

import itertools
import math
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import run_on_eight_devices

from xtremes_jax.models.ctc_decode import _extensions, best_path, decode_ctc, search_prefixes

paths = jax.jit(best_path, static_argnums=2)
search = jax.jit(search_prefixes, static_argnums=(2, 3))
decode = jax.jit(decode_ctc, static_argnames=("blank", "beams"))


def rows_of(transcripts) -> list[tuple[int, ...]]:
    return [tuple(row[:count]) for row, count in zip(*(np.asarray(a).tolist() for a in transcripts), strict=True)]


def collapsed(path, blank) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_sum(*values: float) -> float:
    top = max(values)
    return top if top == -math.inf else top + math.log(sum(math.exp(value - top) for value in values))


def follow_prefixes(scores: np.ndarray, blank: int, beams: int) -> list[dict[tuple[int, ...], tuple[float, float]]]:
    """The search in dictionaries of prefixes, best first, before the first frame and after each.

    `scores` is `[frames, vocabulary]` log probabilities; each prefix has those of ending in a blank and in its token.
    """
    kept = [{(): (0.0, -math.inf)}]
    for frame in scores:
        new = defaultdict(lambda: [[-math.inf], [-math.inf]])
        for prefix, (of_blank, of_token) in kept[-1].items():
            new[prefix][0].append(log_sum(of_blank, of_token) + frame[blank])
            if prefix:
                new[prefix][1].append(of_token + frame[prefix[-1]])
        for prefix, (of_blank, of_token) in kept[-1].items():
            for token in sorted(set(range(len(frame))) - {blank}, key=lambda token: -frame[token]):
                before = of_blank if prefix[-1:] == (token,) else log_sum(of_blank, of_token)
                new[(*prefix, token)][1].append(before + frame[token])
        summed = {prefix: (log_sum(*a), log_sum(*b)) for prefix, (a, b) in new.items()}
        kept.append(dict(sorted(summed.items(), key=lambda item: -log_sum(*item[1]))[:beams]))
    return kept


def prefix_search(scores: np.ndarray, blank: int, beams: int) -> tuple[tuple[int, ...], float]:
    """The best prefix in the end, and its log probability."""
    best, parts = next(iter(follow_prefixes(scores, blank, beams)[-1].items()))
    return best, log_sum(*parts)


def all_alignments(scores: np.ndarray, blank: int) -> dict[tuple[int, ...], float]:
    """Every sequence's log probability, by adding up its alignments one by one."""
    found = defaultdict(list)
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        found[collapsed(path, blank)].append(sum(frame[token] for frame, token in zip(scores, path, strict=True)))
    return {tokens: log_sum(*values) for tokens, values in found.items()}


def draw(rng, batch: int, frames: int, vocabulary: int, sharpness: float = 2.0):
    logits = (sharpness * rng.standard_normal((batch, frames, vocabulary))).astype(np.float32)
    lengths = rng.integers(0, frames + 1, batch).astype(np.int32)
    lengths[:2] = frames, 0
    return logits, lengths


@pytest.mark.parametrize(("vocabulary", "blank"), [(5, 0), (5, 2), (5, 4), (2, 1), (1, 0), (40, 39)])
def test_best_path_equals_grouping_frame_by_frame(rng, vocabulary, blank):
    logits, lengths = draw(rng, 30, 40, vocabulary)
    logits[:, 1::2] = logits[:, ::2]  # runs
    logits[rng.random(logits.shape[:2]) < 0.3, blank] += 9
    got = paths(logits, lengths, blank)
    ids = logits.argmax(axis=-1).tolist()
    expected = [collapsed(row[:length], blank) for row, length in zip(ids, lengths, strict=True)]
    assert rows_of(got) == expected
    assert got.tokens.shape == (30, 40) and got.tokens.dtype == got.lengths.dtype == jnp.int32
    assert all((row[count:] == blank).all() for row, count in zip(*map(np.asarray, got), strict=True))


def test_repeats_merge_before_blanks_go():
    ids = np.array([[1, 1, 0, 1, 2, 2], [0, 0, 3, 3, 3, 0], [5, 5, 5, 5, 5, 5]])
    got = paths(np.eye(6, dtype=np.float32)[ids], np.array([6, 6, 2], np.int32), 0)
    assert rows_of(got) == [(1, 1, 2), (3,), (5,)]


@pytest.mark.parametrize(
    ("frames", "vocabulary", "blank", "beams"),
    [(1, 3, 0, 8), (4, 3, 2, 40), (5, 2, 0, 9), (6, 2, 1, 12), (3, 4, 1, 64), (4, 4, 0, 150), (3, 1, 0, 4)],
)
def test_with_room_for_all_prefixes_the_search_is_exact(rng, frames, vocabulary, blank, beams):
    logits, lengths = draw(rng, 12, frames, vocabulary)
    lengths[2:] = np.maximum(lengths[2:], 1)
    transcripts, scores = search(logits, lengths, blank, beams)
    for tokens, score, row, length in zip(rows_of(transcripts), scores, logits, lengths, strict=True):
        expected = all_alignments(log_softmax(row[:length]), blank)
        assert tokens == max(expected, key=expected.get)
        np.testing.assert_allclose(score, expected[tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", range(1, 9))
@pytest.mark.parametrize(("vocabulary", "blank", "sharpness"), [(6, 0, 1.0), (3, 2, 2.0), (25, 7, 3.0)])
def test_search_equals_dictionaries_of_prefixes(rng, beams, vocabulary, blank, sharpness):
    logits, lengths = draw(rng, 8, 30, vocabulary, sharpness)
    transcripts, scores = search(logits, lengths, blank, beams)
    for tokens, score, row, length in zip(rows_of(transcripts), scores, logits, lengths, strict=True):
        expected, expected_score = prefix_search(log_softmax(row[:length]), blank, beams)
        assert tokens == expected
        np.testing.assert_allclose(score, expected_score, rtol=1e-5, atol=1e-5)


def test_a_wide_search_over_many_frames_keeps_its_precision(rng):
    logits, lengths = draw(rng, 2, 250, 12, 1.0)
    transcripts, scores = search(logits, lengths, 3, 24)
    expected, expected_score = prefix_search(log_softmax(logits[0]), 3, 24)
    assert rows_of(transcripts) == [expected, ()]
    np.testing.assert_allclose(scores, [expected_score, 0.0], rtol=1e-6)


@pytest.mark.parametrize("beams", [1, 3, 8])
def test_of_equals_the_same_are_kept_as_in_plain_python(rng, beams):
    logits, lengths = draw(rng, 12, 15, 6, 1.0)
    # Sequences that differ in these tokens alone are equals, in any precision.
    logits[:, :, [2, 4]] = logits[:, :, [1]]
    transcripts, scores = search(logits, lengths, 0, beams)
    for tokens, score, row, length in zip(rows_of(transcripts), scores, logits, lengths, strict=True):
        expected, expected_score = prefix_search(log_softmax(row[:length]), 0, beams)
        assert tokens == expected
        np.testing.assert_allclose(score, expected_score, rtol=1e-5, atol=1e-5)


def test_a_prefix_that_left_the_beam_and_came_back_joins_what_grew_from_it(rng):
    logits, _ = draw(rng, 40, 20, 3)
    transcripts, scores = search(logits, np.full(40, 20, np.int32), 0, 6)
    came_back = 0
    for tokens, score, row in zip(rows_of(transcripts), scores, logits, strict=True):
        followed = follow_prefixes(log_softmax(row), 0, 6)
        best, parts = next(iter(followed[-1].items()))
        assert tokens == best
        np.testing.assert_allclose(score, log_sum(*parts), rtol=1e-5)
        came_back += any(
            child[:-1] not in before and child[:-1] in after
            for before, after in itertools.pairwise(followed)
            for child in set(before) & set(after) - {()}
        )
    assert came_back >= 5


@pytest.mark.parametrize(("beams", "tokens"), [(1, 1), (1, 9), (8, 3), (8, 63), (32, 63), (3, 0)])
def test_few_extensions_are_looked_at(beams, tokens):
    beam, rank = _extensions(beams, tokens)
    pairs = list(zip(beam.tolist(), rank.tolist(), strict=True))
    assert pairs == sorted(pairs) and len(pairs) <= beams * (3 + math.log(beams))
    assert set(pairs) >= {(i, r) for i in range(beams) for r in range(min(2, tokens))}
    assert rank.max(initial=0) <= beams


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("beams", [1, 4])
def test_half_precision_is_decoded_as_its_values_in_float32(rng, dtype, beams):
    logits, lengths = draw(rng, 6, 20, 7)
    half = jnp.asarray(logits, dtype)
    got = decode(half, lengths, blank=1, beams=beams)
    assert rows_of(got) == rows_of(decode(half.astype(jnp.float32), lengths, blank=1, beams=beams))


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_one_beam_is_the_best_path(rng, beams):
    logits, lengths = draw(rng, 4, 20, 5)
    got = rows_of(decode(logits, lengths, blank=0, beams=beams))
    wanted = paths(logits, lengths, 0) if beams == 1 else search(logits, lengths, 0, beams)[0]
    assert got == rows_of(wanted)


def test_rows_and_padding_do_not_matter(rng):
    logits, lengths = draw(rng, 5, 16, 6)
    transcripts, scores = search(logits, lengths, 0, 4)
    disturbed = np.where(np.arange(16)[None, :, None] < lengths[:, None, None], logits, np.nan)
    again, same = search(np.concatenate([disturbed, np.full((5, 9, 6), np.inf, np.float32)], 1), lengths, 0, 4)
    assert rows_of(again) == rows_of(transcripts)
    np.testing.assert_array_equal(same, scores)
    for row in range(5):
        alone, score = search(logits[row : row + 1], lengths[row : row + 1], 0, 4)
        assert rows_of(alone) == rows_of(transcripts)[row : row + 1]
        np.testing.assert_allclose(score, scores[row : row + 1], rtol=1e-6)


@pytest.mark.parametrize("beams", [1, 4])
def test_no_frames_at_all(beams):
    got = decode(jnp.zeros((3, 0, 5)), jnp.zeros(3, jnp.int32), blank=0, beams=beams)
    assert got.tokens.shape == (3, 0) and got.lengths.tolist() == [0, 0, 0]


@pytest.mark.parametrize("beams", [1, 4, 20])
def test_what_is_no_number_harms_its_own_row_alone(rng, beams):
    logits, _ = draw(rng, 6, 10, 5)
    lengths = np.full(6, 10, np.int32)
    sound = logits.copy()
    logits[0, 4] = np.nan
    logits[1, 4, 2] = np.nan
    logits[2, 3] = -np.inf
    logits[3, 3, 1:] = -np.inf  # the blank for certain
    logits[4, 3, 2] = np.inf  # a token for certain
    tokens, counts = decode(logits, lengths, blank=0, beams=beams)
    assert ((tokens >= 0) & (tokens < 5)).all() and ((counts >= 0) & (counts <= 10)).all()
    sound[3, 3] = [40, 0, 0, 0, 0]
    sound[4, 3] = [0, 0, 40, 0, 0]
    expected = rows_of(decode(sound, lengths, blank=0, beams=beams))
    assert rows_of((tokens, counts))[3:] == expected[3:]
    assert counts[:3].tolist() == [0, 0, 0]
    if beams > 1:
        assert np.isnan(search(logits, lengths, 0, beams)[1]).tolist() == [True, True, True, False, False, False]


def test_there_has_to_be_a_beam():
    with pytest.raises(ValueError, match="0 beams"):
        decode_ctc(jnp.zeros((1, 2, 3)), jnp.array([2]), blank=0, beams=0)


@pytest.mark.parametrize("scale", [1e4, 1e30, 1e-30, 0.0])
def test_logits_of_any_size(rng, scale):
    logits, lengths = draw(rng, 4, 12, 5)
    transcripts, scores = search((logits * np.float32(scale)), lengths, 0, 4)
    assert np.isfinite(scores).all()
    if scale > 1:
        assert rows_of(transcripts) == rows_of(paths(logits, lengths, 0))


NOTHING_SENT = """
    import re
    import numpy as np, jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from xtremes_jax.models import decode_ctc

    assert jax.device_count() == 8
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((16, 20, 7)).astype(np.float32)
    lengths = rng.integers(0, 21, 16).astype(np.int32)
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    placed = jax.device_put((logits, lengths), rows)
    for beams in (1, 4):
        decode = jax.jit(lambda logits, lengths: decode_ctc(logits, lengths, blank=0, beams=beams))
        expected = decode(logits, lengths)
        with jax.set_mesh(mesh):
            compiled = decode.lower(*placed).compile()
            sending = re.compile(r".*(?:all-|collective-|reduce-scatter)\\S*[(].*")
            sent = sending.findall(compiled.as_text())
            assert not sent, sent
            assert sending.findall("  %x = f32[8]{0} all-gather(%y), dimensions={0}"), "what is looked for is not found"
            assert all(array.sharding.is_equivalent_to(rows, array.ndim) for array in compiled(*placed))
            for got, wanted in zip(compiled(*placed), expected):
                np.testing.assert_array_equal(got, wanted)
            for got, wanted in zip(decode(logits[:3], lengths[:3]), expected):  # does not divide
                np.testing.assert_array_equal(got, wanted[:3])
    print("agrees")
"""


def test_eight_devices_decode_their_own_rows_and_send_nothing():
    assert run_on_eight_devices(NOTHING_SENT).splitlines()[-1] == "agrees"
