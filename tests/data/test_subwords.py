"""The decoder's tokenizer: learned the same every time, read back by Transformers, exact in what it cannot spell."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.data.subwords import (
    SPECIAL_TOKENS,
    encode_targets,
    first_token,
    learn_tokenizer,
    load_subword_tokenizer,
)
from xtremes_jax.data.text import build_vocabulary
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.decode import to_sentences

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the a she he sees buys finds cat dog river city boat bread in near on under red small old".split()


@pytest.fixture
def texts(rng) -> list[str]:
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(200)]


def test_special_tokens_come_first_in_the_order_of_mbart(texts):
    tokenizer = learn_tokenizer(texts, vocab_size=80)
    assert tokenizer.convert_ids_to_tokens(range(4)) == list(SPECIAL_TOKENS) == ["<s>", "<pad>", "</s>", "<unk>"]
    ids = [getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos", "unk")]
    assert ids == [0, 1, 2, 3] and len(tokenizer) == 80
    assert set("".join(texts).replace(" ", "▁")) <= set(tokenizer.get_vocab())


def test_labels_end_with_the_end_token_and_decode_to_the_text(texts):
    tokenizer = learn_tokenizer(texts, vocab_size=60)
    labels, unknown = encode_targets(tokenizer, texts)
    assert len(labels) == 200 and not unknown and len({len(row) for row in labels}) > 5
    for row in labels:
        assert row.dtype == np.int32 and row[-1] == 2 and not set(row[:-1].tolist()) & {0, 1, 2, 3}
    assert to_sentences(tokenizer, labels) == texts
    # Generated: it begins with the decoder's start token, and what follows the end is padding or worse.
    generated = [[2, *row.tolist(), 7, 1, 1] for row in labels]
    assert to_sentences(tokenizer, generated) == texts
    assert to_sentences(tokenizer, [[2], [2, 2, 5], [], np.array([1, 1])]) == [""] * 4


def test_a_language_token_comes_first_and_not_twice(texts):
    from tokenizers import processors

    tokenizer = learn_tokenizer(texts, vocab_size=60)
    tokenizer.add_special_tokens({"additional_special_tokens": ["en_XX"]})
    english = tokenizer.convert_tokens_to_ids("en_XX")
    plain = encode_targets(tokenizer, texts[:9])[0]
    for template in ("en_XX $A </s>", "$A </s> en_XX"):  # of mBART-50 and of mBART-25
        ids = [("en_XX", english), ("</s>", 2)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
        first = encode_targets(tokenizer, texts[:9])[0]
        assert [row.tolist() for row in first] == [[english, *row.tolist()] for row in plain]
        started = encode_targets(tokenizer, texts[:9], start_token=english)[0]
        assert [row.tolist() for row in started] == [row.tolist() for row in plain]
        assert first_token(tokenizer) == english


SENTENCEPIECE = """
import json, sys
from pathlib import Path
import sentencepiece
folder, texts = Path(sys.argv[1]), json.loads(sys.argv[2])
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts), model_prefix=str(folder / "sentencepiece.bpe"), vocab_size=40, minloglevel=2
)
(folder / "sentencepiece.bpe.vocab").unlink()
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MBart50Tokenizer"}))
"""

READING = """
import sys
from xtremes_jax.data.subwords import encode_targets, load_subword_tokenizer
from xtremes_jax.evaluation.decode import to_sentences
tokenizer = load_subword_tokenizer(sys.argv[1])
labels, unknown = encode_targets(tokenizer, ["the cat finds a boat"])
assert not unknown and labels[0][-1] == tokenizer.eos_token_id, labels
assert labels[0][0] == tokenizer.convert_tokens_to_ids("en_XX"), labels
assert to_sentences(tokenizer, labels) == ["the cat finds a boat"], to_sentences(tokenizer, labels)
"""


def test_mbart_directories_with_a_sentencepiece_model_alone_are_read(texts, tmp_path):
    """As Transformers' slow tokenizers wrote them; each step in a process of its own, since their protobufs clash."""
    for code, more in ((SENTENCEPIECE, [json.dumps(texts)]), (READING, [])):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), *more], cwd=ROOT, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_frequent_words_become_one_piece(texts):
    labels, _ = encode_targets(learn_tokenizer(texts, vocab_size=500), ["the cat", "  the \t cat "])
    assert [len(row) for row in labels] == [3, 3] and labels[0].tolist() == labels[1].tolist()


def test_characters_that_the_vocabulary_lacks_are_counted(texts):
    tokenizer = learn_tokenizer(texts, vocab_size=60)
    labels, unknown = encode_targets(tokenizer, ["the ñandú", "cat", "ñ 中文 the"])
    assert unknown == Counter({"ñ": 2, "ú": 1, "中": 1, "文": 1})
    assert [row.tolist().count(3) for row in labels] == [2, 0, 3]


def test_it_is_the_same_in_another_process_and_transformers_reads_it(texts, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = learn_tokenizer(texts, vocab_size=90)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    code = (
        "import json, sys; from pathlib import Path; from xtremes_jax.data.subwords import learn_tokenizer; "
        "folder = Path(sys.argv[1]); "
        "texts = json.loads((folder / 'texts.json').read_text()); "
        "learn_tokenizer(texts, vocab_size=90).save_pretrained(folder / 'two')"
    )
    tokenizer.save_pretrained(tmp_path / "one")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    one, two = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two"))
    assert one == two
    # Beside a model's config.json, as in the directory of a run.
    (tmp_path / "one" / "config.json").write_text(json.dumps({"model_type": "speech-encoder-decoder"}))
    for again in (AutoTokenizer.from_pretrained(tmp_path / "one"), load_subword_tokenizer(tmp_path / "one")):
        assert again.get_vocab() == tokenizer.get_vocab() and again.is_fast
        assert again(texts[:9]).input_ids == [row.tolist() for row in encode_targets(tokenizer, texts[:9])[0]]
        assert (again.pad_token_id, again.eos_token_id) == (1, 2)


PIECES = [("▁the", -1.0), ("▁cat", -2.0), ("▁", -3.0)]
# The one begins as sentencepiece does, the other as mBART.
SPECIAL = {"MBart50Tokenizer": ("<unk>", "<s>", "</s>"), "MBartTokenizer": SPECIAL_TOKENS}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("chosen", ["en_XX", None])
def test_a_multilingual_tokenizer_puts_its_language_first(kind, chosen, tmp_path):
    import transformers

    vocab = [*((token, 0.0) for token in SPECIAL[kind]), *PIECES]
    getattr(transformers, kind)(vocab=vocab, src_lang="en_XX", tgt_lang=chosen).save_pretrained(tmp_path)
    tokenizer = load_subword_tokenizer(tmp_path)
    language, the, cat = tokenizer.convert_tokens_to_ids(["en_XX", "▁the", "▁cat"])
    labels, unknown = encode_targets(tokenizer, ["the cat", "cat ж"])
    assert [row.tolist()[:3] for row in labels] == [[language, the, cat], [language, cat, labels[1][2]]]
    assert all(row[-1] == 2 for row in labels) and unknown == Counter("ж")
    assert to_sentences(tokenizer, [[2, *labels[0]]]) == ["the cat"]


def test_what_cannot_be_a_decoders_tokenizer_is_refused(texts, tmp_path):
    with pytest.raises(InputError, match="--target_column_name"):
        learn_tokenizer(["", "  "], vocab_size=50)
    with pytest.raises(InputError, match=r"--translation_vocab_size 6: the translations hold 4 characters.*least 8"):
        learn_tokenizer(["ab c"], vocab_size=6)
    assert load_subword_tokenizer(tmp_path) is None
    CharacterTokenizer(build_vocabulary(["ab"])).as_transformers.save_pretrained(tmp_path)
    assert load_subword_tokenizer(tmp_path) is None, "a CTC tokenizer is none of a decoder"
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match=r"cannot be loaded.*--tokenizer_name_or_path"):
        load_subword_tokenizer(tmp_path)


@pytest.mark.parametrize("token", ["eos_token", "pad_token"])
def test_a_tokenizer_without_end_or_padding_is_refused(token, texts, tmp_path):
    learn_tokenizer(texts, vocab_size=60).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings[token]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=f"has no {token}"):
        load_subword_tokenizer(tmp_path)
