"""A corpus of which only the lengths of its clips are known: enough to plan a run whose data are not at hand."""

import re
from collections.abc import Sequence

import numpy as np

from xtremes_jax import hub
from xtremes_jax.arguments import Arguments
from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.corpus import Corpus, longest_target
from xtremes_jax.data.buckets import QUANTUM, rows_per_bucket
from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.data.pairs import Pairs
from xtremes_jax.data.prepare import PreparedSplit
from xtremes_jax.data.subwords import learn_tokenizer, load_subword_tokenizer
from xtremes_jax.errors import InputError
from xtremes_jax.models import config_from_huggingface
from xtremes_jax.starting import StartingPoint

LABELS_PER_SECOND = {"ctc": 16, "translation": 5, "classification": 0, "retrieval": 0}
"""Assumed of a second of speech: characters (MLS has 11 to 17, depending on the language), or subwords."""
VOCABULARY = 64
"""Assumed characters of a CTC vocabulary, special tokens included: about what MLS's languages have together."""
INTENTS = 14
"""Assumed classes, those of MInDS-14, where the task is not about its own languages."""
_OF_REAL_DATA = ("max_train_samples", "max_eval_samples", "max_predict_samples", "distractor_dataset_name")


def planned_corpus(arguments: Arguments, start: StartingPoint, buckets: Sequence[str], devices: int) -> Corpus:
    """Splits with clips of the given lengths, and a vocabulary or classes of the assumed size.

    Args:
        arguments: of the run.
        start: what it starts from, whose tokenizer is taken if there is one.
        buckets: lengths in seconds, each with a number of clips behind a colon, or alone for one batch of them.
        devices: that batches are spread over.

    Raises:
        InputError: a length or a number makes no sense, or is above `--max_duration_in_seconds`.
    """
    kind = arguments.selection.task.kind
    lengths = _lengths(buckets, arguments)
    _check_one_frame(lengths, start)
    most = longest_target(start)
    splits: dict[str, PreparedSplit] = {}
    for role in ("train", "eval", "predict"):
        if role != "train" and not getattr(arguments.training, f"do_{role}"):
            continue
        counts = _rows(arguments, role, np.array(list(lengths)), devices)
        if role == "train":
            counts = [said or rows for said, rows in zip(lengths.values(), counts, strict=True)]
        splits[role] = _split(role, np.repeat(list(lengths), counts), kind, most)
    if kind == "retrieval" and len(splits["train"]) < 2:
        said = " ".join(buckets)
        raise InputError(f"--planned_buckets {said} is one clip, and a pair for retrieval is two. Give more.")
    pairs = _pairs(len(splits["train"])) if kind == "retrieval" else None
    return Corpus(splits, _tokenizer(arguments, start), _label_names(arguments), synthetic=False, pairs=pairs)


def assumptions(arguments: Arguments) -> list[str]:
    """What `planned_corpus` assumes of the data, and flags of the data that it does without, in words."""
    values = {name: getattr(arguments.data, name) for name in _OF_REAL_DATA}
    without = [f"--{name}" for name, value in values.items() if value is not None]
    if not without:
        return [_assumption(arguments)]
    return [_assumption(arguments), f"--planned_buckets stands for all data, so {', '.join(without)} changed nothing"]


def _assumption(arguments: Arguments) -> str:
    kind = arguments.selection.task.kind
    if kind == "ctc":
        own = arguments.model.tokenizer_name_or_path is not None
        vocabulary = "the tokenizer's vocabulary" if own else f"a vocabulary of {VOCABULARY} characters"
        return f"{LABELS_PER_SECOND[kind]} characters in a second of speech, {vocabulary}"
    if kind == "translation":
        return f"{LABELS_PER_SECOND[kind]} subwords in a second of speech"
    if kind == "classification":
        return f"{len(_label_names(arguments))} classes"
    return "every clip a query or a key, two clips a sentence"


def _lengths(buckets: Sequence[str], arguments: Arguments) -> dict[int, int | None]:
    """Length in samples -> number of clips, None where it is not said."""
    longest, shortest = arguments.data.max_duration_in_seconds, arguments.data.min_duration_in_seconds
    found: dict[int, int | None] = {}
    for word in buckets:
        parts = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)(?::(\d{1,9}))?", word, re.ASCII)
        seconds = float(parts[1]) if parts else 0.0
        if not parts or seconds <= 0 or (parts[2] is not None and int(parts[2]) < 1):
            raise InputError(
                f"--planned_buckets {word} is no length. Give seconds above 0, and behind a colon how many clips have "
                "that length, if you know: 5 10:2000 20:300."
            )
        if longest is not None and seconds > longest:
            raise InputError(
                f"--planned_buckets {word} is longer than --max_duration_in_seconds {longest:g}, so no clip of it "
                "is trained on. Leave it out, or raise the limit."
            )
        if shortest and seconds <= shortest:
            raise InputError(
                f"--planned_buckets {word} is no longer than --min_duration_in_seconds {shortest:g}, so no clip of it "
                "is trained on. Leave it out, or lower the limit."
            )
        samples = -(-round(seconds * SAMPLE_RATE) // QUANTUM) * QUANTUM
        if samples in found:
            raise InputError(f"--planned_buckets {word} is given twice. Give each length once.")
        found[samples] = None if parts[2] is None else int(parts[2])
    return dict(sorted(found.items()))


def _check_one_frame(lengths: dict[int, int | None], start: StartingPoint) -> None:
    encoder = config_from_huggingface(start.encoder_config, head="ctc")
    shortest = min(lengths)
    if encoder.num_output_frames(shortest) < 1:
        raise InputError(
            f"--planned_buckets: {shortest / SAMPLE_RATE:g} s are too short for one frame of {start.source}. Give "
            "longer clips."
        )


def _rows(arguments: Arguments, role: str, lengths: np.ndarray, devices: int) -> list[int]:
    """Clips of each length that make one batch over all devices."""
    data, training = arguments.data, arguments.training
    if role == "train":
        multiple = devices * training.gradient_accumulation_steps
        clips, seconds = training.per_device_train_batch_size, data.max_batch_seconds
    else:
        multiple = devices
        clips, seconds = training.per_device_eval_batch_size, data.max_eval_batch_seconds
    if seconds is None:
        return rows_per_bucket(lengths, batch_size=clips * multiple, multiple=multiple).tolist()
    samples = round(seconds * SAMPLE_RATE) * multiple
    return rows_per_bucket(lengths, max_batch_samples=samples, multiple=multiple).tolist()


def _split(role: str, num_samples: np.ndarray, kind: str, most: int | None) -> PreparedSplit:
    """Clips of these lengths, which cannot be read."""
    count = len(num_samples)
    tokens = num_samples * LABELS_PER_SECOND[kind] // SAMPLE_RATE + (kind == "translation")
    tokens = np.maximum(np.minimum(tokens, most) if most is not None else tokens, kind != "retrieval")
    names = [f"planned clip {index}" for index in range(count)]
    return PreparedSplit(
        name=role, raw=None, rows=np.arange(count), num_samples=num_samples.astype(np.int64),
        labels=[np.zeros(length, np.int32) for length in tokens.tolist()], references=[""] * count,
        languages=["planned"] * count, clip_names=names, has_loss=np.ones(count, bool), is_float=False, skipped=[],
        filtered={}, unknown_characters={}, fingerprint="planned",
    )  # fmt: skip


def _pairs(clips: int) -> Pairs:
    """Neighbours are of one sentence."""
    keys = np.arange(0, clips - 1, 2)
    return Pairs(keys + 1, np.arange(len(keys)), tuple(keys[:, None]))


def _tokenizer(arguments: Arguments, start: StartingPoint):
    model, data = arguments.model, arguments.data
    kind, named = arguments.selection.task.kind, model.tokenizer_name_or_path
    folder = None
    if named is not None:
        folder = hub.resolve_model(named, cache_dir=model.cache_dir, token=arguments.training.hub_token, weights=False)
    if kind == "ctc":
        language = start.language
        if folder is None and language is not None and not language.is_new:
            named, folder = start.source, start.directory
        if folder is not None:
            found = hub.load_tokenizer(folder, None if language is None else language.name)
            if found is None:
                raise InputError(f"{named} holds no vocab.json, so no tokenizer. Name one that does.")
            return found
        tokens = (data.word_delimiter_token, data.unk_token, data.pad_token)
        characters = [chr(0x100 + index) for index in range(VOCABULARY - len(tokens) - 2)]  # it adds <s> and </s>
        names = {name: getattr(data, name) for name in ("unk_token", "pad_token", "word_delimiter_token")}
        return CharacterTokenizer({token: place for place, token in enumerate((*characters, *tokens))}, **names)
    if kind != "translation":
        return None
    folder = folder or start.decoder.directory
    found = load_subword_tokenizer(folder) if folder is not None else None
    if found is None and folder is not None:
        raise InputError(f"{folder} holds no tokenizer of a decoder. Name one with --tokenizer_name_or_path.")
    # Of a decoder with random weights: a vocabulary of the size that the run would learn.
    words = (f"{number:05d}" for number in range(20_000))
    return found or learn_tokenizer(words, vocab_size=data.translation_vocab_size)


def _label_names(arguments: Arguments) -> list[str] | None:
    task = arguments.selection.task
    if task.kind != "classification":
        return None
    count = len(task.languages) if arguments.selection.target_column == "lang_id" else INTENTS
    return [str(index) for index in range(count)]
