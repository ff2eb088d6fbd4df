"""Hostile model directories without weights: configurations, feature extractors, tokenizers."""

import dataclasses
import json
import os
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer  # noqa: F401 (their import takes seconds: not to be timed)

from fuzzing.mutate import OUTSIDE, change_bytes, hostile_value, json_bytes, to_json
from fuzzing.reader import Place, Reader, require
from xtremes_jax import hub
from xtremes_jax.arguments import ModelArguments
from xtremes_jax.data.subwords import encode_targets, first_token, learn_tokenizer, load_subword_tokenizer
from xtremes_jax.data.text import encode_all
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.decode import to_sentences, to_text
from xtremes_jax.models import (
    DECODER_PRESETS,
    FAMILIES,
    PRESETS,
    GenerationConfig,
    ModelConfig,
    TranslationConfig,
    abstract_model,
)
from xtremes_jax.models.config_fields import MOST_PARAMETERS
from xtremes_jax.starting import configure, configure_translator, generation_config, starting_point

_EXTRACTOR = {"do_normalize": True, "return_attention_mask": True, "sampling_rate": 16_000,
              "feature_extractor_type": "Wav2Vec2FeatureExtractor"}  # fmt: skip
_LOG_MEL = {"feature_size": 80, "num_mel_bins": 80, "stride": 2, "padding_value": 0.0, "return_attention_mask": True,
            "sampling_rate": 16_000, "feature_extractor_type": "SeamlessM4TFeatureExtractor"}  # fmt: skip
_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_adapter_layers", "vocab_size", "num_labels",
          "decoder_layers", "d_model", "decoder_ffn_dim", "max_position_embeddings", "num_beams", "max_length",
          "num_conv_pos_embeddings", "adapter_kernel_size", "output_hidden_size", "classifier_proj_size")  # fmt: skip


@cache
def _configs() -> dict[str, dict[str, Any]]:
    """Valid contents of a config.json, by what they are of."""
    tiny = PRESETS["tiny"]
    reader = dataclasses.replace(DECODER_PRESETS["tiny"], decoder_start_token_id=2)
    joint = TranslationConfig(encoder=tiny, decoder=reader, decoder_start_token_id=2)
    found: dict[str, ModelConfig | TranslationConfig] = {"joint": joint}
    for head in ("ctc", "classification", "retrieval"):
        found[head] = dataclasses.replace(tiny, head=head, num_labels=3)
    found["adapter"] = dataclasses.replace(tiny, head="ctc", add_adapter=True, output_hidden_size=96)
    for name, family in FAMILIES.items():
        fields = {field.name: getattr(tiny, field.name) for field in dataclasses.fields(ModelConfig)}
        known = {key: value for key, value in fields.items() if key not in family.config.lacking}
        found[name] = family.config(**known | {"head": "classification"})
    return {name: config.to_huggingface() for name, config in found.items()}


def _generation() -> dict[str, Any]:
    tokens = {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    return {**GenerationConfig(**tokens).to_huggingface(), "temperature": 1.0, "do_sample": False}


def _write(random: Random, path: Path, value: Any, share_changed: float) -> None:
    if random.random() < 0.02:
        odd = random.randrange(4)
        if odd == 0:
            os.symlink(random.choice((path.name, "/dev/zero", OUTSIDE, "/nowhere")), path)
        elif odd == 1:
            path.mkdir()
        elif odd == 2:
            path.write_bytes(b"\xff\xfe" + json.dumps(value).encode("utf-16-le"))
        else:
            path.write_bytes(b'{"a": [' + b"[]," * (7 << 20 if random.random() < 0.1 else 1000) + b"[]]}")
    elif random.random() < share_changed:
        path.write_bytes(json_bytes(random, value))
    else:
        path.write_text(json.dumps(value), encoding="utf-8")


def _absurd(random: Random, config: dict[str, Any]) -> dict[str, Any]:
    """Sizes that a number of each may have, and that are too much together."""
    for part in (config, config.get("encoder"), config.get("decoder")):
        for name in _SIZES if isinstance(part, dict) else ():
            if name in part and random.random() < 0.3:
                part[name] = random.choice((2**20, 2**16, 1024, 2**31, part[name]))
    if random.random() < 0.2:
        config["id2label"] = {str(number): "x" for number in range(random.choice((5000, 300_000)))}
    return config


def hostile_config(random: Random, folder: Path) -> None:
    """Writes a model directory without weights."""
    name, content = random.choice(list(_configs().items()))
    content = json.loads(json.dumps(content))
    if random.random() < 0.25:
        content = _absurd(random, content)
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    else:
        _write(random, folder / "config.json", content, 0.75)
    if name == "joint" or random.random() < 0.1:
        _write(random, folder / "generation_config.json", _generation(), 0.6)
    extractor = _LOG_MEL if (name == "wav2vec2-bert") != (random.random() < 0.05) else _EXTRACTOR
    if random.random() < 0.7:
        _write(random, folder / "preprocessor_config.json", extractor, 0.3)
    if random.random() < 0.2:
        _write(random, folder / "processor_config.json", {"feature_extractor": extractor}, 0.5)


def _make_config(random: Random, place: Place) -> None:
    hostile_config(random, place.folder)


def _read_config(random: Random, place: Place) -> None:
    check_config(random, place.folder)


def check_config(random: Random, folder: Path) -> None:
    """Reads a directory as a run does, up to the shapes of its parameters; the sizes have to be sane."""
    start = starting_point(ModelArguments(model_name_or_path=str(folder)), translation=None)
    config: ModelConfig | TranslationConfig
    if start.is_joint:
        config = configure_translator(start, {}, {})
        require(generation_config(start, config, None).max_length <= config.decoder.max_position_embeddings, config)
        parts = [config.encoder, config.decoder]
    else:
        config = configure(start, random.choice((None, "ctc", "classification", "retrieval")), {})
        parts = [config]
        if config.head == "classification":
            require(len(start.label_names) in (0, config.num_labels), start.label_names)
    require(all(part.num_parameters <= MOST_PARAMETERS for part in parts), config)
    require(parts[0].min_samples >= 1 and parts[0].num_output_frames(16_000) >= 0, config)
    hash(config)
    json.dumps(config.to_huggingface(), allow_nan=False).encode("ascii")
    if random.random() < 0.05 and (start.is_joint or config.head is not None):
        abstract_model(config)


_VOCABULARY = {"a": 0, "b": 1, "é": 2, "|": 3, "[UNK]": 4, "[PAD]": 5, "<s>": 6, "</s>": 7}
_CHARACTERS = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "unk_token": "[UNK]", "pad_token": "[PAD]",
               "bos_token": "<s>", "eos_token": "</s>", "word_delimiter_token": "|", "do_lower_case": False,
               "model_max_length": 10**30,
               "replace_word_delimiter_char": " ", "target_lang": None,
               "added_tokens_decoder": {"4": {"content": "[UNK]", "special": True, "lstrip": True, "rstrip": True,
                                              "normalized": False, "single_word": False}}}  # fmt: skip


@cache
def _subwords() -> dict[str, str]:
    """Files of a subword tokenizer."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        learn_tokenizer(["a man is here", "the dog ran away", "é ü ß"] * 5, vocab_size=60).save_pretrained(folder)
        return {path.name: path.read_text("utf-8") for path in sorted(Path(folder).iterdir())}


def hostile_tokenizer(random: Random, folder: Path) -> None:
    """Writes the files of a tokenizer: of characters more often than of subwords."""
    if random.random() < 0.25:
        for name, text in _subwords().items():
            if random.random() < 0.5:
                data = json_bytes(random, json.loads(text))
            else:
                data = text.encode() if random.random() < 0.8 else change_bytes(random, text.encode())
            (folder / name).write_bytes(data)
        return
    settings: dict[str, Any] = dict(_CHARACTERS)
    if random.random() < 0.2:
        settings |= random.choice((
            {"vocab_file": str(folder.parent / "outside" / "secret.txt")},
            {"init_inputs": [str(folder / "vocab.json")]},
            {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, {"tokenizer_file": OUTSIDE}, {"vocab_file": 3},
            {"added_tokens_decoder": {"9999999": "x"}}, {"extra_special_tokens": {"a": "b"}}, {"name_or_path": OUTSIDE},
        ))  # fmt: skip
        (folder / "evil.py").write_text("open('executed', 'w')\n", encoding="utf-8")
    vocabulary: Any = _VOCABULARY
    if random.random() < 0.3:
        vocabulary = random.choice((
            dict.fromkeys(_VOCABULARY, 0), {**_VOCABULARY, "x": 10**9}, {**_VOCABULARY, "x": -1}, {"a": 0}, {},
            {**_VOCABULARY, "x": 0.5}, {**_VOCABULARY, "x": "7"}, {**_VOCABULARY, "x": 2**70}, {"en": _VOCABULARY},
            {chr(number): number for number in range(0x3400, 0x3400 + 20_000)}, {**_VOCABULARY, "x" * 100_000: 8},
        ))  # fmt: skip
    _write(random, folder / "vocab.json", vocabulary, 0.3)
    _write(random, folder / "tokenizer_config.json", settings, 0.5)
    if random.random() < 0.3:
        _write(
            random, folder / "special_tokens_map.json", {"unk_token": "[UNK]", "pad_token": {"content": "[PAD]"}}, 0.7
        )
    if random.random() < 0.3:
        (folder / "added_tokens.json").write_text(
            to_json({"<x>": random.choice((8, hostile_value(random)))}), "utf-8", "replace"
        )


def _make_tokenizer(random: Random, place: Place) -> None:
    hostile_tokenizer(random, place.folder)


def _read_tokenizer(random: Random, place: Place) -> None:
    check_tokenizer(place.folder)


def check_tokenizer(folder: Path) -> None:
    """Loads a tokenizer and uses it as a run does."""
    tokenizer = hub.load_tokenizer(folder)
    if tokenizer is not None:
        labels, _ = encode_all(tokenizer, ["ab é", "", "x[PAD]y", "a" * 100])
        require(all((label >= 0).all() for label in labels), labels)
        require(isinstance(to_text(tokenizer, [label.tolist() for label in labels]), list), tokenizer)
        require(0 <= tokenizer.pad_token_id < 2**20, tokenizer.pad_token_id)
        return
    subwords = load_subword_tokenizer(folder)
    if subwords is None:
        raise InputError(f"{folder} holds no tokenizer.")
    labels, _ = encode_targets(subwords, ["a man", "", "xyz é"])
    require(all((label >= 0).all() for label in labels), labels)
    require(isinstance(to_sentences(subwords, labels), list), subwords)
    first_token(subwords)


READERS = {
    "config": Reader("config", _make_config, _read_config),
    "tokenizer": Reader("tokenizer", _make_tokenizer, _read_tokenizer),
}
