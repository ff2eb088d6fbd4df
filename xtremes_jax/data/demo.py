"""The embedded demo corpus: synthetic speech in six languages of XTREME-S, built on this machine, nothing downloaded.

Sentences of `demo_text.py`, spoken by espeak-ng (`espeak.py`) in several voices, rates and pitches, with noise added.
The result is a directory shaped like a data set repository of the Hugging Face hub: `README.md` with its configs, and
parquet files with the columns of XTREME-S, so that `datasets.load_dataset(directory, "mls.all")` reads it like any
other. The file `SYNTHETIC` marks it: whoever shows a result on this corpus says that the speech is synthetic.

A FLEURS `id` is one sentence in all six languages and in the same split, English among them: pairs for retrieval.
CoVoST 2 has other sentences of that grammar, each in four languages with its English text.
"""

import hashlib
import io
import logging
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr
from datasets import Audio, ClassLabel, Features, Value

from xtremes_jax.data import demo_text, espeak
from xtremes_jax.data.cache import build_directory, default_cache_dir
from xtremes_jax.data.demo_text import INTENTS, LANGUAGES
from xtremes_jax.data.repository import SYNTHETIC_MARKER
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import FLEURS_GROUPS, TASKS

SPLITS = ("train", "validation", "test")
SEED = 20260


@dataclass(frozen=True)
class Sizes:
    """Clips of train, validation and test, for each language."""

    mls: tuple[int, int, int] = (330, 30, 40)
    voxpopuli: tuple[int, int, int] = (75, 10, 15)
    fleurs: tuple[int, int, int] = (80, 10, 20)
    """Sentences, spoken once in every language."""
    minds14: tuple[int, int, int] = (6, 1, 2)
    """For each of the 14 intents."""
    covost2: tuple[int, int, int] = (150, 15, 25)
    """Other sentences than those of fleurs, spoken once in every language but English and Polish."""


VARIANTS = ("f1", "f2", "f3", "f4", "m1", "m2", "m3", "m7")
"""Speakers: espeak-ng's voice variants, female (f) and male (m)."""
RATES = (140, 155, 170, 185)
"""Words per minute."""
PITCHES = (35, 45, 55, 65)
SNRS_DB = (None, 30, 20, 15)
"""Signal-to-noise ratios of the added noise; None adds none."""

_ESPEAK = dict(zip(LANGUAGES, ("en-us", "es", "fr", "it", "de", "pl"), strict=True))
_LANGUAGE_NAMES = dict(zip(LANGUAGES, ("English", "Spanish", "French", "Italian", "German", "Polish"), strict=True))
CONFIG_LANGUAGES = {
    "mls": LANGUAGES,
    "voxpopuli": LANGUAGES,
    "fleurs": ("en_us", "es_419", "fr_fr", "it_it", "de_de", "pl_pl"),
    "minds14": ("en-US", "es-ES", "fr-FR", "it-IT", "de-DE", "pl-PL"),
    "covost2": ("es.en", "fr.en", "it.en", "de.en"),
}
"""Data set -> its names of the languages, in the order of `SPOKEN`."""
SPOKEN = {dataset: LANGUAGES for dataset in CONFIG_LANGUAGES} | {"covost2": ("es", "fr", "it", "de")}
"""Data set -> the languages that are spoken in it; CoVoST 2 has no Polish, and translates into English."""
_SAMPLE_RATES = {"mls": 16_000, "voxpopuli": 16_000, "fleurs": 16_000, "minds14": 8_000, "covost2": 16_000}


def _name(dataset: str, language: str) -> str:
    """What a data set calls a language of `demo_text.LANGUAGES`."""
    return CONFIG_LANGUAGES[dataset][SPOKEN[dataset].index(language)]


def _features(dataset: str) -> Features:
    text, count = Value("string"), Value("int32")
    audio = Audio(sampling_rate=_SAMPLE_RATES[dataset])
    task = {"fleurs": "fleurs-asr"}.get(dataset, dataset)
    lang_id = ClassLabel(names=list(TASKS[task].languages))
    if dataset == "mls":
        return Features(path=text, audio=audio, transcription=text, lang_id=lang_id)
    if dataset == "voxpopuli":
        return Features(id=text, path=text, audio=audio, transcription=text, lang_id=lang_id)
    if dataset == "covost2":
        return Features(path=text, audio=audio, transcription=text, translation=text, lang_id=lang_id)
    if dataset == "minds14":
        intent = ClassLabel(names=list(INTENTS))
        return Features(path=text, audio=audio, transcription=text, english_transcription=text, intent_class=intent,
                        lang_id=lang_id)  # fmt: skip
    return Features(
        id=count, num_samples=count, path=text, audio=audio, transcription=text, raw_transcription=text,
        gender=ClassLabel(names=["male", "female", "other"]), lang_id=lang_id, language=text,
        lang_group_id=ClassLabel(names=list(FLEURS_GROUPS)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Clip:
    """One clip to be spoken, and its row without the audio."""

    dataset: str
    split: str
    path: str
    spoken: str
    row: dict
    variant: str
    rate: int
    pitch: int
    snr_db: int | None


def build_demo(cache_dir: str | Path | None = None, sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Builds the demo corpus once, and gives its directory.

    The directory's name holds a fingerprint of all that decides the contents, so a new version never meets an old
    corpus. It appears whole or not at all: several processes may build at the same time.

    Args:
        cache_dir: Where to keep it; None for `cache.default_cache_dir()`.
        sizes: How many clips. The default is what README and quickstart are about.

    Returns:
        A directory for `datasets.load_dataset(directory, config, split=split)`, with configs `mls.all`, `mls.es`,
        `fleurs.all`, `fleurs.es_419`, `voxpopuli.all`, `minds14.all`, `covost2.all`, `covost2.es.en`, … and splits
        train, validation, test.

    Raises:
        InputError: The cache directory cannot be written, or espeak-ng does not run here.
    """
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    target = cache / f"demo-v2-{_fingerprint(sizes)}"
    if target.is_dir():
        return target
    logging.getLogger(__name__).info("Building the synthetic demo corpus in %s (once; under half a minute).", target)
    try:
        return build_directory(target, lambda folder: _build(folder, sizes))
    except RuntimeError as error:
        raise InputError(f"{error}. The speech comes from the package espeakng-loader: is it installed?") from error


def _fingerprint(sizes: Sizes) -> str:
    digest = hashlib.sha256(repr(astuple(sizes)).encode())
    for module in (__file__, demo_text.__file__, espeak.__file__):
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()[:10]


def _build(out: Path, sizes: Sizes) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Resampling, noise and FLAC leave Python's lock; the speech itself is one process a language.
        counts = list(pool.map(lambda language: _build_language(out, language, sizes), LANGUAGES))
    (out / SYNTHETIC_MARKER).write_text(
        "Synthetic speech: spoken by espeak-ng from generated sentences, with added noise. No person was recorded.\n",
        encoding="utf-8",
    )
    clips, seconds = (sum(column) for column in zip(*counts, strict=True))
    (out / "README.md").write_text(_readme(clips, seconds), encoding="utf-8")


def _build_language(out: Path, language: str, sizes: Sizes) -> tuple[int, float]:
    """Writes every parquet file of one language; gives the number of clips and of seconds."""
    clips = list(_plan(language, sizes))
    rate, spoken = espeak.speak(
        [espeak.Utterance(c.spoken, f"{_ESPEAK[language]}+{c.variant}", c.rate, c.pitch) for c in clips]
    )
    rows: dict[tuple[str, str], list[dict]] = {(d, s): [] for d in SPOKEN if language in SPOKEN[d] for s in SPLITS}
    seconds = 0.0
    for clip, samples in zip(clips, spoken, strict=True):
        out_rate = _SAMPLE_RATES[clip.dataset]
        rng = np.random.default_rng([SEED, zlib.crc32(clip.path.encode())])
        pcm = _room(soxr.resample(samples.astype(np.float32), rate, out_rate), clip.snr_db, rng)
        seconds += len(pcm) / out_rate
        flac = io.BytesIO()
        soundfile.write(flac, pcm, out_rate, format="FLAC", subtype="PCM_16")
        row = {**clip.row, "path": clip.path, "audio": {"bytes": flac.getvalue(), "path": clip.path}}
        if clip.dataset == "fleurs":
            row["num_samples"] = len(pcm)
        rows[clip.dataset, clip.split].append(row)
    for (dataset, split), kept in rows.items():
        name = _name(dataset, language)
        file = out / _file(dataset, name, split)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(kept, schema=_features(dataset).arrow_schema), file, row_group_size=100)
    return len(clips), seconds


def _room(speech: np.ndarray, snr_db: int | None, rng: np.random.Generator) -> np.ndarray:
    """`[samples]` float speech of any level -> int16 at a random level, with white or pink noise at that ratio."""
    if snr_db is not None:
        noise = rng.standard_normal(1 << (len(speech) - 1).bit_length(), np.float32)  # a length that the FFT likes
        if rng.random() < 0.5:  # pink: power falls as 1/frequency
            spectrum = np.fft.rfft(noise)
            noise = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(len(spectrum), dtype=np.float32)))
        noise = noise[: len(speech)]
        ratio = np.sqrt(np.mean(np.square(speech)) / np.mean(np.square(noise))) * 10 ** (-snr_db / 20)
        speech = speech + ratio * noise
    level = rng.uniform(0.3, 0.95) * 32767
    return np.round(speech * (level / np.max(np.abs(speech)))).astype(np.int16)


def _plan(language: str, sizes: Sizes) -> Iterator[_Clip]:
    """Every clip of one language, in the order in which it is spoken."""
    number = 0
    for dataset, split, spoken, row in _rows(language, sizes):
        rng = np.random.default_rng([SEED, LANGUAGES.index(language), number])
        variant, rate, pitch, snr = (
            choices[rng.integers(len(choices))] for choices in (VARIANTS, RATES, PITCHES, SNRS_DB)
        )
        name = _name(dataset, language)
        row["lang_id"] = _features(dataset)["lang_id"].str2int(name)
        if dataset == "voxpopuli":
            row["id"] = f"{language}_{number:05d}"
        if dataset == "fleurs":
            row["gender"] = int(variant.startswith("f"))
        path = f"{dataset}/{name}/{split}/{variant}_{number:05d}.flac"
        yield _Clip(dataset, split, path, spoken, row, variant, rate, pitch, snr)
        number += 1


def _rows(language: str, sizes: Sizes) -> Iterator[tuple[str, str, str, dict]]:
    """Data set, split, spoken sentence and text columns of every clip of one language."""
    index = LANGUAGES.index(language)
    patterns = [_shuffled(sentences, index) for sentences in demo_text.command_sentences(language)]
    commands = [patterns[k % len(patterns)][k // len(patterns)] for k in range(sum(sizes.mls))]
    for split, sentence in _split(commands, sizes.mls):
        yield "mls", split, sentence, {"transcription": sentence}
    for split, sentence in _split(_shuffled(demo_text.parliament_sentences(language), index), sizes.voxpopuli):
        yield "voxpopuli", split, sentence, {"transcription": sentence}
    # The same shuffle in every language: a sentence id is in the same split, with the same meaning, everywhere.
    parallel = _shuffled(list(enumerate(demo_text.parallel_sentences(language))), 100)
    for split, (sentence_id, raw) in _split(parallel, sizes.fleurs):
        group = next(g for g, members in FLEURS_GROUPS.items() if _name("fleurs", language) in members)
        yield "fleurs", split, raw, {
            "id": sentence_id, "transcription": raw.rstrip(".").lower(), "raw_transcription": raw,
            "language": _LANGUAGE_NAMES[language], "lang_group_id": list(FLEURS_GROUPS).index(group),
        }  # fmt: skip
    english = demo_text.banking_sentences("en")
    for intent, sentences in enumerate(demo_text.banking_sentences(language)):
        pairs = _shuffled(list(zip(sentences, english[intent], strict=True)), 200 + intent)
        for split, (sentence, translation) in _split(pairs, sizes.minds14):
            yield "minds14", split, sentence, {
                "transcription": sentence, "english_transcription": translation, "intent_class": intent,
            }  # fmt: skip
    if language in SPOKEN["covost2"]:  # last, so that the voices of what comes before stay as they are
        in_english = demo_text.parallel_sentences("en")
        for split, (sentence_id, raw) in _split(parallel[sum(sizes.fleurs) :], sizes.covost2):
            yield "covost2", split, raw, {"transcription": raw, "translation": in_english[sentence_id]}


def _shuffled(items: list, stream: int) -> list:
    return [items[k] for k in np.random.default_rng([SEED, stream]).permutation(len(items))]


def _split(items: list, counts: tuple[int, int, int]) -> Iterator[tuple[str, object]]:
    """The first items, divided among the splits; every item is another sentence, so no split knows another's."""
    assert sum(counts) <= len(items), (counts, len(items))
    names = [name for name, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    yield from zip(names, items, strict=False)


def _file(dataset: str, language: str, split: str) -> str:
    return f"{dataset}/{language}/{split}.parquet"


def _readme(clips: int, seconds: float) -> str:
    lines = ["---", "tags:", "- synthetic", "configs:"]
    for dataset, languages in CONFIG_LANGUAGES.items():
        for name in ("all", *languages):
            lines += [f"- config_name: {dataset}.{name}", "  data_files:"]
            for split in SPLITS:
                lines += [f"  - split: {split}", "    path:"]
                lines += [f"    - {_file(dataset, one, split)}" for one in (languages if name == "all" else (name,))]
    return "\n".join([
        *lines, "---", "", "# xtremes_jax demo corpus: SYNTHETIC speech", "",
        f"{clips:,} clips, {seconds / 3600:.2f} hours, in English, Spanish, French, Italian, German and Polish.",
        "Sentences from small grammars, spoken by espeak-ng with added noise: no person was recorded, and a score on",
        "this corpus says nothing about real speech. It is for trying the program, in the columns of XTREME-S.", "",
    ])  # fmt: skip
