"""A small corpus for retrieval, in FLEURS' columns: each sentence is a tone of its own pitch, whoever says it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from corpora import RATE, TINY, flac
from datasets import Audio, ClassLabel, Features, Value

LANGUAGES = ["de_de", "en_us", "fr_fr"]
FEATURES = Features(
    id=Value("int32"), path=Value("string"), audio=Audio(), transcription=Value("string"),
    lang_id=ClassLabel(names=LANGUAGES),
)  # fmt: skip


def spoken(pitch: int, rng: np.random.Generator) -> bytes:
    """0.3 to 0.5 s of a tone and noise, as FLAC."""
    time = np.arange(int(rng.uniform(0.3, 0.5) * RATE)) / RATE
    waveform = 6000 * np.sin(2 * np.pi * (300 + 170 * pitch) * time) + 200 * rng.standard_normal(len(time))
    return flac(waveform.astype(np.int16))


def clips(split: str, sentences: range, languages: list[str], rng: np.random.Generator, pitches: int = 12):
    """One clip for each sentence and language; two of the first sentence in the last language."""
    for language in languages:
        for sentence in [*sentences, *([sentences[0]] if language == languages[-1] else [])]:
            name = f"{split}/{language}/{sentence}.{rng.integers(10**9)}.flac"
            yield {
                "id": sentence, "path": name, "transcription": f"tone {sentence % pitches}",
                "audio": {"bytes": spoken(sentence % pitches, rng), "path": name},
                "lang_id": LANGUAGES.index(language),
            }  # fmt: skip


def write_table(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), file)


def write_retrieval_corpus(folder: Path, seed: int = 0) -> Path:
    """A directory like a hub repository: fleurs.all, and each language of the test split as a config of its own.

    Sentence 99 of the training split, and 199 of the others, has no English utterance.
    """
    rng = np.random.default_rng(seed)
    header = ["---", "configs:"]
    header += ["- config_name: fleurs.all", "  data_files:"]
    for split, sentences in (("train", range(12)), ("validation", range(100, 112)), ("test", range(200, 212))):
        rows = list(clips(split, sentences, LANGUAGES, rng))
        alone = 99 if split == "train" else 199
        rows += list(clips(split, range(alone, alone + 1), ["de_de"], rng))
        write_table(folder / "fleurs.all" / f"{split}.parquet", rows)
        header += [f"  - split: {split}", f"    path: fleurs.all/{split}.parquet"]
    for number, language in enumerate(LANGUAGES):
        mine = [row for row in rows if row["lang_id"] == number]
        write_table(folder / f"fleurs.{language}" / "test.parquet", mine)
        header += [f"- config_name: fleurs.{language}", "  data_files:"]
        header += ["  - split: test", f"    path: fleurs.{language}/test.parquet"]
    (folder / "README.md").write_text("\n".join([*header, "---", ""]), encoding="utf-8")
    (folder / "tiny.json").write_text(json.dumps(TINY), encoding="utf-8")
    return folder


def write_distractors(folder: Path, seed: int = 1) -> Path:
    """A directory with the config more.all: English and German clips whose pitches are those of no sentence."""
    rng = np.random.default_rng(seed)
    rows = list(clips("test", range(312, 320), ["de_de", "en_us"], rng, pitches=1000))
    features = Features({name: kind for name, kind in FEATURES.items() if name != "id"})
    folder.mkdir()
    table = pa.Table.from_pylist([{k: v for k, v in r.items() if k != "id"} for r in rows], features.arrow_schema)
    pq.write_table(table, folder / "more.parquet")
    header = "---\nconfigs:\n- config_name: more\n  data_files:\n  - split: test\n    path: more.parquet\n---\n"
    (folder / "README.md").write_text(header, encoding="utf-8")
    return folder
