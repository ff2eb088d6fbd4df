"""From token ids to text: those of CTC decoding, and a decoder's sentences."""

from collections.abc import Iterable, Sequence


def to_text(tokenizer, ids: Iterable[Iterable[int]]) -> list[str]:
    """The text of decoded token ids, as `Wav2Vec2CTCTokenizer.batch_decode` would give it for the frames.

    As in the reference script, special tokens other than the padding token stay in the text: a predicted `[UNK]` reads
    "[UNK]". Spaces are those the model put, the ends stripped; punctuation is not tidied up.

    Args:
        tokenizer: a `Wav2Vec2CTCTokenizer`, or what has its names, whose padding token is the blank.
        ids: lists of token ids without repeats to merge, such as those of `models.decode_ctc`; or label ids.
    """
    # The vocabulary itself comes before added tokens of the same id, as in the tokenizer's own decoding.
    pieces = {index: token for token, index in tokenizer.get_added_vocab().items()}
    pieces |= {index: token for token, index in tokenizer.encoder.items()}
    for index, piece in pieces.items():
        if piece == tokenizer.pad_token:
            pieces[index] = ""
        elif piece == tokenizer.word_delimiter_token:
            pieces[index] = tokenizer.replace_word_delimiter_char
    texts = ["".join(pieces.get(index, tokenizer.unk_token) for index in row).strip() for row in ids]
    return [text.lower() for text in texts] if tokenizer.do_lower_case else texts


def to_sentences(tokenizer, ids: Iterable[Sequence[int]]) -> list[str]:
    """The text of a decoder's token ids, without special tokens, the ends stripped, punctuation not tidied up.

    Args:
        tokenizer: of the decoder.
        ids: token ids a row, generated or labels; what follows the first end token behind the first place is left out
            (a decoder that starts with the end token has it there as well).
    """
    rows = []
    for row in ids:
        row = [int(index) for index in row]
        end = row.index(tokenizer.eos_token_id, 1) if tokenizer.eos_token_id in row[1:] else len(row)
        rows.append(row[:end])
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]
