"""Small corpora of tones in XTREME-S's columns: each letter or class has a pitch of its own, so they can be learned."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from datasets import Audio, ClassLabel, Features, Value

RATE = 16_000
LETTERS = "abcd"
LANGUAGES = ["de", "pl"]

TINY = {
    "model_type": "wav2vec2",
    "conv_dim": [8, 16, 16, 16, 16, 16, 16],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}
"""A config.json of a wav2vec 2.0 model that compiles in seconds."""


def tone(letters: str, rng: np.random.Generator) -> np.ndarray:
    """`[samples]` int16: a tone of 0.1 to 0.2 s for each letter, silence for a space, some noise."""
    parts = []
    for letter in letters:
        time = np.arange(int(rng.uniform(0.1, 0.2) * RATE)) / RATE
        pitch = 0 if letter == " " else 300 * (2 + LETTERS.index(letter))
        parts.append(6000 * np.sin(2 * np.pi * pitch * time))
    waveform = np.concatenate(parts)
    return (waveform + 100 * rng.standard_normal(len(waveform))).astype(np.int16)


def flac(waveform: np.ndarray) -> bytes:
    """The contents of a FLAC file."""
    buffer = io.BytesIO()
    sf.write(buffer, waveform, RATE, format="FLAC")
    return buffer.getvalue()


def text(rng: np.random.Generator) -> str:
    """One to three words of one to four letters."""
    return " ".join("".join(rng.choice(list(LETTERS), rng.integers(1, 5))) for _ in range(rng.integers(1, 4)))


def translated(letters: str) -> str:
    """What the letters mean in covost2.all: a word each."""
    return " ".join({"a": "one", "b": "two", "c": "three", "d": "four", " ": "and"}[letter] for letter in letters)


def write_corpus(folder: Path, *, train: int = 24, other: int = 10, seed: int = 0) -> Path:
    """A directory like a hub repository, with the configs mls.all, minds14.all and covost2.all."""
    rng = np.random.default_rng(seed)
    strings, audio = Value("string"), Audio()
    features = {
        "mls.all": Features(path=strings, audio=audio, transcription=strings, lang_id=ClassLabel(names=LANGUAGES)),
        "minds14.all": Features(
            path=strings, audio=audio, transcription=strings, intent_class=ClassLabel(names=list(LETTERS)),
            lang_id=ClassLabel(names=LANGUAGES),
        ),
        "covost2.all": Features(
            path=strings, audio=audio, transcription=strings, translation=strings,
            lang_id=ClassLabel(names=LANGUAGES),
        ),
    }  # fmt: skip
    header = ["---", "configs:"]
    for config, columns in features.items():
        header += [f"- config_name: {config}", "  data_files:"]
        for split, count in (("train", train), ("validation", other), ("test", other)):
            rows = []
            for number in range(count):
                spoken = text(rng)
                intent = int(rng.integers(len(LETTERS)))
                said = LETTERS[intent] * len(spoken) if config == "minds14.all" else spoken
                name = f"{split}/{number:03}.flac"
                row = {"path": name, "audio": {"bytes": flac(tone(said, rng)), "path": name}, "transcription": said}
                row |= {"lang_id": number % len(LANGUAGES)}
                row |= {
                    "minds14.all": {"intent_class": intent},
                    "covost2.all": {"translation": translated(spoken)},
                }.get(config, {})
                rows.append(row)
            file = folder / config / f"{split}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=columns.arrow_schema), file)
            header += [f"  - split: {split}", f"    path: {config}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*header, "---", ""]), encoding="utf-8")
    (folder / "tiny.json").write_text(json.dumps(TINY), encoding="utf-8")
    return folder
