"""A run's data, ready for batches: its splits, and the vocabulary or the classes that they share."""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from xtremes_jax import hub
from xtremes_jax.arguments import Arguments
from xtremes_jax.data.buckets import LABEL_MULTIPLE
from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.data.pairs import Pairs, find_pairs
from xtremes_jax.data.prepare import PreparedSplit, SkippedClip, check_skipped, prepare, without, write_skipped
from xtremes_jax.data.sources import RawSplit, SplitRequest, load_distractors, load_splits
from xtremes_jax.data.subwords import learn_tokenizer, load_subword_tokenizer
from xtremes_jax.data.text import build_vocabulary, clean, unlisted_ignored
from xtremes_jax.errors import InputError
from xtremes_jax.models import DecoderConfig, config_from_huggingface
from xtremes_jax.run_files import SKIPPED
from xtremes_jax.starting import StartingPoint
from xtremes_jax.training import processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """The data of a run."""

    splits: dict[str, PreparedSplit]
    """By role: "train", "eval", "predict", as far as the run needs them."""
    tokenizer: object | None
    """Of recognition a `Wav2Vec2CTCTokenizer` or `CharacterTokenizer`, whose padding token is the CTC blank; of
    translation the decoder's."""
    label_names: list[str] | None
    """Names of the classes by class id, of a classification run."""
    synthetic: bool
    """Whether the speech is synthetic, which is said wherever a result is shown."""
    pairs: Pairs | None = None
    """Of a retrieval run that trains: what can be paired in the split "train"."""
    distractors: PreparedSplit | None = None
    """Of a retrieval run: more keys, which are of no sentence."""


class SkippedClips:
    """Clips that were left out, kept in `skipped.jsonl` without repeats as they come up.

    Args:
        directory: of the run.
        max_fraction: the run stops when more of a split's clips than this are left out.
    """

    def __init__(self, directory: Path, max_fraction: float):
        self.path = directory / SKIPPED
        self._max_fraction = max_fraction
        self._clips: dict[tuple[str, int], SkippedClip] = {}
        self._noted: dict[tuple[str, int], SkippedClip] = {}
        self._sizes: dict[str, int] = {}
        self._prepared: set[tuple[str, int]] = set()
        self._untold: list[SkippedClip] = []

    @property
    def untold(self) -> int:
        """How many clips that this process could not read the others have not been told of."""
        return len(self._untold)

    def found(self) -> dict[str, list[dict[str, Any]]]:
        """What has come up beside what preparation lists each time, as a checkpoint holds it."""
        clips = [clip for key, clip in self._clips.items() if key not in self._prepared]
        return {
            "unreadable": [dataclasses.asdict(clip) for clip in clips],
            "noted": [dataclasses.asdict(clip) for clip in self._noted.values()],
        }

    def go_on(self, found: dict[str, list[dict[str, Any]]]) -> None:
        """Lists again what `found` has said: a run that goes on does not come by these clips a second time."""
        for kept, clips in ((self._clips, found["unreadable"]), (self._noted, found["noted"])):
            for clip in clips:
                kept.setdefault((clip["split"], clip["sample_id"]), SkippedClip(**clip))
        self._write()

    def note(self, clips: Iterable[SkippedClip]) -> None:
        """Lists clips that have no part in the run although nothing is wrong with them; the run goes on."""
        clips = [clip for clip in clips if (clip.split, clip.sample_id) not in self._noted]
        if not clips:
            return
        for clip in clips[:1]:
            logger.warning("%s: %d clips have no part: %s (%s), …", clip.split, len(clips), clip.clip, clip.reason)
        self._noted |= {(clip.split, clip.sample_id): clip for clip in clips}
        self._write()

    def _write(self) -> None:
        if processes.is_first():
            write_skipped(self.path, (self._noted | self._clips).values())

    def begin(self, splits: Iterable[PreparedSplit]) -> None:
        """Lists what preparation has left out of the splits, and stops the run if it is too much of one."""
        splits = list(splits)
        for split in splits:
            self._sizes[split.name] = len(split.raw.clip_names)
            self._clips |= {(clip.split, clip.sample_id): clip for clip in split.skipped}
        self._prepared = set(self._clips)
        self._write()
        check_skipped(splits, self._max_fraction, self.path)

    def add(self, clips: Iterable[SkippedClip]) -> None:
        """Takes clips that turned out to be unreadable when they were decoded; with other processes, until `tell`.

        Raises:
            InputError: too many clips of a split are left out by now.
        """
        self._untold += [clip for clip in clips if (clip.split, clip.sample_id) not in self._clips]
        if self._untold and not processes.several():
            self.tell()

    def tell(self) -> None:
        """Lists the clips that any process could not read; called by all of them at the same place.

        Raises:
            InputError: in all of them: too many clips of a split are left out by now.
        """
        mine, self._untold = [dataclasses.asdict(clip) for clip in self._untold], []
        everyone = [SkippedClip(**clip) for clips in processes.gather(mine) for clip in clips]
        found = {(clip.split, clip.sample_id): clip for clip in everyone}
        new = [clip for key, clip in found.items() if key not in self._clips]
        if not new:
            return
        for clip in new:
            self._clips[clip.split, clip.sample_id] = clip
            logger.warning("Left out of %s: %s: %s", clip.split, clip.clip, clip.reason)
        processes.from_first(self._write)  # before any of them ends the run over it
        for name in {clip.split for clip in new}:
            count = sum(clip.split == name for clip in self._clips.values())
            if count > self._max_fraction * self._sizes[name]:
                raise InputError(
                    f"{count} of {self._sizes[name]} clips of split {name} cannot be used, more than "
                    f"--max_skipped_fraction {self._max_fraction:g}; the last one: {new[-1].clip}: {new[-1].reason} "
                    f"All are listed in {self.path}. Repair or remove them, or raise --max_skipped_fraction."
                )


def load_corpus(
    arguments: Arguments, start: StartingPoint, skipped: SkippedClips, beat: Callable[[], None] = lambda: None
) -> Corpus:
    """Finds the rows of every split the run needs, makes the vocabulary or the classes, and prepares the clips.

    When nothing is trained, vocabulary and classes are the model's own.

    Args:
        arguments: of the run.
        start: what the model starts from.
        skipped: where clips that are left out are listed.
        beat: called whenever some of it is done, as a sign of life.

    Raises:
        InputError: see `data.sources.load_splits` and `data.prepare.prepare`; the classes of the data are not the
            model's; or too many clips cannot be used.
    """
    data, task = arguments.data, arguments.selection.task
    kind = task.kind
    if arguments.training.disable_tqdm:
        datasets.disable_progress_bars()
    unlisted = unlisted_ignored(data.chars_to_ignore) if task.predicts_text else ""
    if unlisted:
        logger.info("--chars_to_ignore, as in the reference a part of a regular expression, also deletes %s", unlisted)
    raw = load_splits(data, arguments.selection, _requests(arguments), arguments.model.cache_dir, beat)
    tokenizer = _tokenizer(arguments, start, raw) if task.predicts_text else None
    # Frames depend on the convolutions alone, so any head will do.
    options = {
        "kind": kind,
        "num_frames": config_from_huggingface(start.encoder_config, head="ctc").num_output_frames,
        "tokenizer": tokenizer,
        "chars_to_ignore": data.chars_to_ignore,
        "max_target_length": longest_target(start),
        "start_token": start.decoder_start_token_id,
        "min_duration": data.min_duration_in_seconds,
        "max_duration": data.max_duration_in_seconds,
        "num_workers": data.preprocessing_num_workers,
        "cache_dir": _cache_folder(arguments),
        "overwrite_cache": data.overwrite_cache,
        "show_progress": not arguments.training.disable_tqdm,
        "beat": beat,
    }
    in_windows = arguments.training.chunk_length_s is not None
    splits = {
        role: prepare(split, purpose="train", **options)
        if role == "train"
        else prepare(split, purpose="score", in_pieces=in_windows, **options)
        for role, split in raw.items()
    }
    skipped.begin(splits.values())
    if kind == "retrieval":
        synthetic = any(split.synthetic for split in raw.values())
        return _retrieval_corpus(arguments, splits, synthetic, options, skipped)
    label_names = None
    if kind == "classification" and arguments.training.do_train:
        label_names = next(iter(raw.values())).label_names
    elif kind == "classification":
        label_names = _classes_of_model(start)
        splits = {role: _renumbered(split, label_names, start) for role, split in splits.items()}
    return Corpus(splits, tokenizer, label_names, synthetic=any(split.synthetic for split in raw.values()))


def _retrieval_corpus(
    arguments: Arguments, splits: dict[str, PreparedSplit], synthetic: bool, options: dict, skipped: SkippedClips
) -> Corpus:
    """The splits with what can be paired in them; of those to score, without the queries that have no key."""
    key_language, train_pairs = arguments.data.key_language, None
    for role, split in splits.items():
        pairs, alone = find_pairs(split, key_language)
        skipped.note(alone)
        logger.info("%s: %d queries, of %d sentences that have a key", split.name, len(pairs.queries), len(pairs.keys))
        if role == "train":
            train_pairs = pairs
        else:
            splits[role] = without(split, {clip.sample_id for clip in alone})
    raw = load_distractors(arguments.data, key_language, arguments.model.cache_dir)
    if raw is None:
        return Corpus(splits, None, None, synthetic, train_pairs)
    distractors = prepare(raw, purpose="score", **options)
    skipped.begin([distractors])
    return Corpus(splits, None, None, synthetic or raw.synthetic, train_pairs, distractors)


def longest_target(start: StartingPoint) -> int | None:
    """The most labels that a decoder has positions for; batches of labels are as wide as a multiple of this many."""
    if start.decoder is None:
        return None
    return (
        DecoderConfig.from_huggingface(start.decoder.config).max_position_embeddings // LABEL_MULTIPLE * LABEL_MULTIPLE
    )


def _cache_folder(arguments: Arguments) -> Path | None:
    folder = arguments.model.cache_dir
    return Path(folder) / "xtremes_jax" if folder else None


def _requests(arguments: Arguments) -> dict[str, SplitRequest]:
    """The splits that the run's `do_` flags ask for."""
    data, training = arguments.data, arguments.training
    requests = {}
    if training.do_train:
        requests["train"] = SplitRequest(data.train_split_name, data.max_train_samples, "--train_split_name")
    if training.do_eval:
        requests["eval"] = SplitRequest(data.eval_split_name, data.max_eval_samples, "--eval_split_name")
    if training.do_predict:
        requests["predict"] = SplitRequest(data.predict_split_name, data.max_predict_samples, "--predict_split_name")
    return requests


def _tokenizer(arguments: Arguments, start: StartingPoint, raw: dict[str, RawSplit]):
    """The tokenizer that was asked for, the model's own when nothing is trained, or one made from the transcripts."""
    model, data = arguments.model, arguments.data
    if arguments.selection.task.kind == "translation":
        return _subword_tokenizer(arguments, start, raw)
    language = None if start.language is None else start.language.name
    is_known = not arguments.training.do_train or (start.language is not None and not start.language.is_new)
    if model.tokenizer_name_or_path is not None or is_known:
        source, token = model.tokenizer_name_or_path or start.source, arguments.training.hub_token
        folders = start.folders
        if model.tokenizer_name_or_path is not None:
            folders = [hub.resolve_model(source, cache_dir=model.cache_dir, token=token, weights=False)]
        tokenizer = next(filter(None, (hub.load_tokenizer(folder, language) for folder in folders)), None)
        if tokenizer is None:
            raise InputError(f"{source} holds no vocab.json, so no tokenizer. Name one with --tokenizer_name_or_path.")
        return tokenizer
    texts = (
        clean(text, data.chars_to_ignore) for split in raw.values() for text in split.targets() if text is not None
    )
    tokens = {name: getattr(data, name) for name in ("unk_token", "pad_token", "word_delimiter_token")}
    vocabulary = build_vocabulary(texts, **tokens)
    logger.info("Vocabulary of %d characters and tokens, from the transcripts of all splits in use", len(vocabulary))
    return CharacterTokenizer(vocabulary, **tokens, target_lang=language)


def _subword_tokenizer(arguments: Arguments, start: StartingPoint, raw: dict[str, RawSplit]):
    """The decoder's tokenizer: the one asked for, the checkpoint's own, or one learned from the training targets."""
    model, data = arguments.model, arguments.data
    source, folder = start.decoder.source, start.decoder.directory
    if model.tokenizer_name_or_path is not None:
        source = model.tokenizer_name_or_path
        folder = hub.resolve_model(source, cache_dir=model.cache_dir, token=arguments.training.hub_token, weights=False)
    tokenizer = load_subword_tokenizer(folder) if folder is not None else None
    if tokenizer is not None:
        return tokenizer
    if folder is not None:
        raise InputError(
            f"{source} holds no tokenizer.json, so no tokenizer of a decoder. Name one with --tokenizer_name_or_path."
        )
    texts = (clean(text, data.chars_to_ignore) for text in raw["train"].targets() if text)
    tokenizer = learn_tokenizer(texts, vocab_size=data.translation_vocab_size)
    logger.info("Tokenizer of %d subwords, learned from the translations of the training split", len(tokenizer))
    return tokenizer


def _classes_of_model(start: StartingPoint) -> list[str]:
    if not start.label_names:
        raise InputError(f"{start.source} names no classes (id2label in its config.json), so it cannot be scored.")
    return start.label_names


def _renumbered(split: PreparedSplit, names: list[str], start: StartingPoint) -> PreparedSplit:
    """The split with its classes numbered as the model numbers them."""
    lacking = sorted(set(split.references) - set(names))
    if lacking:
        raise InputError(
            f"{start.source} does not know {', '.join(lacking[:5])} ({len(lacking)} classes of split {split.name}). It "
            f"knows {', '.join(names[:10])}{', …' if len(names) > 10 else ''}: choose the data that it was trained for."
        )
    return dataclasses.replace(split, labels=[np.array([names.index(name)], np.int32) for name in split.references])
