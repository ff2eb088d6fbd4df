"""Translations -> labels of a decoder: the subword tokenizer of a checkpoint, or one learned from the training targets.

A tokenizer that is learned has mBART's order of special tokens (`<s>`, `<pad>`, `</s>`, `<unk>` are 0 to 3), so that a
decoder made for it reads like mBART's (Liu et al. 2020, arXiv:2001.08210). Its pieces come from byte-pair encoding
(Sennrich et al. 2016, arXiv:1508.07909) with spaces as part of the pieces (Kudo and Richardson 2018, arXiv:1808.06226).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xtremes_jax.errors import InputError

if TYPE_CHECKING:  # it takes seconds to import, and loads torch where that is installed
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
"""Of a tokenizer that is learned, by id: start, padding, end, unknown."""

_BLOCK_TEXTS = 20_000
_FILES = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "merges.txt")
"""Any of these makes a directory one with a subword tokenizer; a CTC tokenizer has none of them."""


def holds_subword_tokenizer(directory: Path) -> bool:
    """Whether a directory has a file of a decoder's tokenizer."""
    return any((directory / name).is_file() for name in _FILES)


def load_subword_tokenizer(directory: str | Path) -> "PreTrainedTokenizerFast | None":
    """The decoder's tokenizer in a model directory, from local files alone; None when there is none.

    Raises:
        InputError: the files are damaged, of a tokenizer that is not "fast", or it lacks an end or a padding token.
    """
    directory = Path(directory)
    if not holds_subword_tokenizer(directory):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        tokenizer("a")  # settings of a wrong type are found only when it is used
    except Exception as error:  # the library raises whatever its parsers do
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"The tokenizer in {directory} cannot be loaded ({reason}). Copy its files again, or name another with "
            "--tokenizer_name_or_path."
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"The tokenizer in {directory} ({type(tokenizer).__name__}) has no tokenizer.json, which is needed here. "
            "Save it once with Transformers' fast tokenizer, or name another with --tokenizer_name_or_path."
        )
    for name in ("eos_token", "pad_token"):
        if getattr(tokenizer, f"{name}_id") is None:
            raise InputError(
                f"The tokenizer in {directory} has no {name}, without which no sentence "
                f"{'ends' if name == 'eos_token' else 'can be padded'}. Add it to its tokenizer_config.json."
            )
    return tokenizer


def learn_tokenizer(texts: Iterable[str], *, vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-pair tokenizer of at most `vocab_size` tokens, special ones and all characters of the texts included.

    The same texts in the same order give the same tokenizer. `save_pretrained` writes what `AutoTokenizer` reads.

    Raises:
        InputError: there is no text, or `vocab_size` has no room for the characters.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError("There is no translation to learn a tokenizer from: all are empty. See --target_column_name.")
    characters = len(set("".join(texts)) - {" "}) + 1
    if vocab_size < characters + len(SPECIAL_TOKENS):
        raise InputError(
            f"--translation_vocab_size {vocab_size}: the translations hold {characters} characters, so the vocabulary "
            f"needs at least {characters + len(SPECIAL_TOKENS)} tokens."
        )
    start, pad, end, unknown = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, SPECIAL_TOKENS.index(end))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, pad_token=pad, eos_token=end, unk_token=unknown
    )


def encode_targets(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], *, start_token: int | None = None
) -> tuple[list[np.ndarray], Counter[str]]:
    """Labels of many texts, as the tokenizer makes them for targets, each ending with the end token.

    A multilingual tokenizer puts a language token beside the text: of mBART-50 it comes first, which is how a decoder
    with a forced first token is trained; where it comes behind the end token (mBART-25) it is moved to the front.

    Args:
        tokenizer: of the decoder.
        texts: cleaned translations.
        start_token: what the decoder starts every sentence with; where that is the language's token, as of mBART-25,
            labels do not begin with it a second time.

    Returns:
        One `[tokens]` int32 array per text; and the characters for which the vocabulary has only the unknown token,
        counted.
    """
    labels: list[np.ndarray] = []
    unknown: Counter[str] = Counter()
    _choose_english(tokenizer)
    for first in range(0, len(texts), _BLOCK_TEXTS):
        block = list(texts[first : first + _BLOCK_TEXTS])
        encoded = tokenizer(text_target=block, return_attention_mask=False, return_offsets_mapping=True)
        for text, ids, spans in zip(block, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            label = _ended(ids, tokenizer.eos_token_id)
            labels.append(label[1:] if label[0] == start_token and len(label) > 1 else label)
            for token, (start, end) in zip(ids, spans, strict=True):
                if token == tokenizer.unk_token_id:
                    unknown.update(text[start:end].strip())
    return labels, unknown


def first_token(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """The language's token that all labels begin with; None where they begin with the text itself."""
    first = int(encode_targets(tokenizer, ["a"])[0][0][0])
    plain = {tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    return first if first in tokenizer.all_special_ids and first not in plain else None


def _choose_english(tokenizer: "PreTrainedTokenizerFast") -> None:
    """A multilingual tokenizer that was saved without a target language writes English, as all of CoVoST 2 here."""
    if getattr(tokenizer, "tgt_lang", "") is None and "en_XX" in tokenizer.get_vocab():
        tokenizer.tgt_lang = "en_XX"


def _ended(ids: Sequence[int], end: int) -> np.ndarray:
    """`[tokens]` int32 with the end token last; what stood behind it comes first."""
    ids = list(ids)
    place = len(ids) - 1 - ids[::-1].index(end) if end in ids else len(ids)
    return np.array([*ids[place + 1 :], *ids[:place], end], np.int32)
