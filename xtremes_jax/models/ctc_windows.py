"""CTC decoding of a recording whose frames come window by window: what one pass over all of them would give.

Of each frame no more is kept than its likeliest token, or what the beams of a search have added: memory grows with the
frames, not with the vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from xtremes_jax.models.ctc_decode import extend_prefixes, first_prefixes, likeliest_tokens

_extend = jax.jit(extend_prefixes, static_argnames="blank")


def for_decoding(
    logits: Float[Array, "batch frames vocabulary"], beams: int
) -> Int[Array, "batch frames"] | Float[Array, "batch frames vocabulary"]:
    """What a decoder of so many beams has to be given of logits: with one, the likeliest token of each frame alone."""
    return likeliest_tokens(logits) if beams == 1 else logits


def window_decoder(*, blank: int, beams: int) -> "BestPath | PrefixSearch":
    """What decodes one recording: `add` each window, in order, then ask for its `tokens`.

    Args:
        blank: id of the CTC blank.
        beams: as of `decode_ctc`, which gives the same for the joined logits.
    """
    return BestPath(blank) if beams == 1 else PrefixSearch(blank, beams)


class BestPath:
    """The likeliest token of each frame, repeats merged and then blanks removed."""

    def __init__(self, blank: int):
        self._blank, self._parts = blank, [np.full(1, blank, np.int32)]

    def add(self, tokens: Int[np.ndarray, " frames"], first: int, last: int) -> None:
        """Frames `first` to `last` of the next window, of which `for_decoding` has found the tokens."""
        self._parts.append(np.array(tokens[first:last], np.int32))

    def tokens(self) -> Int[np.ndarray, " tokens"]:
        """Of the recording; none of one with a frame whose logits are NaN or all minus infinity."""
        found = np.concatenate(self._parts)
        if (found < 0).any():
            return found[:0]
        is_new = (found[1:] != found[:-1]) & (found[1:] != self._blank)
        return found[1:][is_new]


class PrefixSearch:
    """CTC prefix beam search that goes on from window to window; see `ctc_decode.search_prefixes`."""

    def __init__(self, blank: int, beams: int):
        self._blank, self._state, self._is_broken = blank, first_prefixes(1, beams), False
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, logits: Float[np.ndarray, "frames vocabulary"], first: int, last: int) -> None:
        """Frames `first` to `last` of the next window; windows of one shape are searched by one program."""
        place = np.arange(len(logits))
        is_valid = (place >= first) & (place < last)
        self._state, found = _extend(self._state, jnp.asarray(logits)[None], is_valid[None], blank=self._blank)
        self._is_broken |= bool(found.is_broken[0])
        self._parts.append((np.asarray(found.origins)[first:last, 0], np.asarray(found.added)[first:last, 0]))

    def tokens(self) -> Int[np.ndarray, " tokens"]:
        """Of the likeliest prefix; none where a frame's logits are NaN or all minus infinity."""
        tokens, beam = [], 0
        for origins, added in reversed([] if self._is_broken else self._parts):
            for origin, token in zip(origins[::-1].tolist(), added[::-1].tolist(), strict=True):
                if token[beam] >= 0:
                    tokens.append(token[beam])
                beam = origin[beam]
        return np.array(tokens[::-1], np.int32)
