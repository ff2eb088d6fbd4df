"""Decoding window by window gives what decoding the joined logits gives."""

import jax
import numpy as np
import pytest

from xtremes_jax.models import decode_ctc
from xtremes_jax.models.ctc_windows import for_decoding, window_decoder

decode = jax.jit(decode_ctc, static_argnames=("blank", "beams"))
reduce = jax.jit(for_decoding, static_argnums=1)


def in_windows(logits, blank, beams, rng):
    """Tokens of `[frames, vocabulary]` logits that come in windows of 16 with noise at their ends."""
    decoder = window_decoder(blank=blank, beams=beams)
    start = 0
    while start < len(logits):
        first, last = int(rng.integers(0, 5)), int(rng.integers(6, 17))
        window = rng.standard_normal((16, logits.shape[1])).astype(np.float32) * 9
        window[last:] = np.nan  # what is cut off is not looked at
        kept = logits[start : start + last - first]
        window[first : first + len(kept)] = kept
        decoder.add(np.asarray(reduce(window[None], beams))[0], first, first + len(kept))
        start += len(kept)
    return decoder.tokens().tolist()


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize(("vocabulary", "blank"), [(6, 0), (9, 8), (2, 1)])
def test_windows_change_nothing(rng, beams, vocabulary, blank):
    logits = (2 * rng.standard_normal((6, 75, vocabulary))).astype(np.float32)
    logits[:, 1::2] = logits[:, ::2][:, :37]  # runs, also over the ends of windows
    logits[:, rng.random(75) < 0.3, blank] += 5
    expected = decode(logits, np.full(6, 75, np.int32), blank=blank, beams=beams)
    for row, tokens, length in zip(logits, np.asarray(expected.tokens), expected.lengths, strict=True):
        assert in_windows(row, blank, beams, rng) == tokens[:length].tolist()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_broken_frame_leaves_no_tokens(rng, beams, bad):
    logits = rng.standard_normal((40, 5)).astype(np.float32)
    assert in_windows(logits, 0, beams, rng)
    logits[rng.integers(40)] = bad
    assert in_windows(logits, 0, beams, rng) == []


@pytest.mark.parametrize("beams", [1, 3])
def test_a_recording_without_frames_has_no_tokens(beams):
    assert window_decoder(blank=0, beams=beams).tokens().tolist() == []
