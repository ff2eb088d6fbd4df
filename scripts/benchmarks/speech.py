"""SYNTHETIC corpora in XTREME-S's columns, made on the fly: noise and buzz with the envelope of speech."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr
from datasets import Audio, Features, Value

FORMATS = {"flac": ("FLAC", "PCM_16"), "mp3": ("MP3", None), "opus": ("OGG", "OPUS"), "wav": ("WAV", "PCM_16")}
"""Name -> libsndfile's format and subtype."""
RATES = (8_000, 16_000, 48_000)
"""Hz: telephone speech (MInDS-14, BABEL), MLS and FLEURS, Common Voice (CoVoST 2)."""
CONFIG = "mls.all"
"""Config of every corpus here."""

_LETTERS = list("abcdefghijklmnopqrstuvwxyz    ")
_LETTERS_PER_SECOND = 12
_SYNTHESIS_RATE = 48_000


def durations_like(corpus: str, clips: int, rng: np.random.Generator) -> np.ndarray:
    """`[clips]` seconds: "mls" is uniform from 10 to 20; "minds14" log-normal, median 8, sigma 0.6, from 2 to 30."""
    if corpus == "mls":
        return rng.uniform(10, 20, clips)
    return np.clip(rng.lognormal(np.log(8), 0.6, clips), 2, 30)


def speech_like(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """`[samples]` float32 at 48 kHz: a buzz of moving pitch, hiss, four swells a second, and pauses between phrases."""
    count = int(seconds * _SYNTHESIS_RATE)
    time = np.arange(count) / _SYNTHESIS_RATE

    def curve(per_second: float, low: float, high: float) -> np.ndarray:
        knots = np.arange(0, seconds + 2 / per_second, 1 / per_second)
        return np.interp(time, knots, rng.uniform(low, high, len(knots)))

    phase = 2 * np.pi * np.cumsum(curve(3, 90, 260)) / _SYNTHESIS_RATE
    buzz = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 13))
    hiss = np.convolve(rng.standard_normal(count), np.hanning(11) / 4, "same")
    loudness = np.clip(curve(8, -0.3, 1), 0, 1) * (curve(0.7, 0, 1) > 0.25)
    waveform = loudness * (curve(6, 0, 1) * buzz + curve(6, 0, 0.5) * hiss) + 0.002 * rng.standard_normal(count)
    return (0.6 * waveform / np.abs(waveform).max()).astype(np.float32)


def write_corpora(
    folder: Path, formats: list[str], rates: list[int], seconds: np.ndarray, seed: int = 0
) -> dict[str, Path]:
    """The same clips in every format at every rate: "flac 16 kHz" -> a directory that `--dataset_name` takes."""
    rng = np.random.default_rng(seed)
    names = {(kind, rate): f"{kind} {rate // 1000} kHz" for kind in formats for rate in rates}
    rows: dict[str, list[dict]] = {name: [] for name in names.values()}
    for number, length in enumerate(seconds):
        waveform = speech_like(length, rng)
        letters = "".join(rng.choice(_LETTERS, int(length * _LETTERS_PER_SECOND)))
        for rate in rates:
            sampled = waveform if rate == _SYNTHESIS_RATE else soxr.resample(waveform, _SYNTHESIS_RATE, rate)
            for kind in formats:
                file = io.BytesIO()
                container, subtype = FORMATS[kind]
                soundfile.write(file, np.clip(sampled, -1, 1), rate, format=container, subtype=subtype)
                path = f"train/{number:05}.{kind}"
                audio = {"bytes": file.getvalue(), "path": path}
                rows[names[kind, rate]].append({"path": path, "audio": audio, "transcription": letters})
    text = Value("string")
    schema = Features(path=text, audio=Audio(), transcription=text).arrow_schema
    for name, content in rows.items():
        target = folder / name.replace(" ", "_") / CONFIG / "train.parquet"
        target.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(content, schema=schema), target, row_group_size=64)
        header = f"---\nconfigs:\n- config_name: {CONFIG}\n  data_files:\n  - split: train\n"
        header += f"    path: {CONFIG}/train.parquet\n---\n"
        (target.parents[1] / "README.md").write_text(header, encoding="utf-8")
    return {name: folder / name.replace(" ", "_") for name in rows}
