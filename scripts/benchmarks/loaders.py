"""The two data pipelines of the loader benchmark, each in a process of its own that makes a pass when it is told to.

"ours" is `xtremes_jax.data.loader.TrainLoader`. "torch" is what one would write with PyTorch: the same `datasets` table
under `torch.utils.data.DataLoader`, batches from Transformers' `LengthGroupedSampler` (with the lengths given, so that
it need not decode every clip for them), and a collator of soundfile, soxr and `Wav2Vec2FeatureExtractor` with
`padding="longest"`. `datasets` decodes audio itself only with torchcodec and FFmpeg.
"""

import io
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import soundfile
import soxr

from xtremes_jax.arguments import DataArguments
from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.data import audio
from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.data.prepare import PreparedSplit, prepare
from xtremes_jax.data.sources import SplitRequest, load_splits
from xtremes_jax.data.text import build_vocabulary, clean
from xtremes_jax.tasks import select_task

SIDES = ("ours", "torch")


@dataclass(frozen=True)
class Source:
    """A training split to read."""

    folder: str
    """`--dataset_name`"""
    config: str
    """`--dataset_config_name`, of a task of recognition."""
    cache: str


class Pass(NamedTuple):
    """What a measured pass read."""

    seconds: float
    """Without workers those of the processor, which other programs do not lengthen; with them those of the clock."""
    audio_seconds: float
    batches: int
    bytes: int
    """Of all arrays of the batches: what is copied to the device."""


def prepared(source: Source) -> PreparedSplit:
    """The split as training prepares it."""
    datasets.disable_progress_bars()
    data = DataArguments(dataset_name=source.folder, dataset_config_name=source.config)
    selection = select_task(task=None, dataset_config_name=source.config, dataset_name=source.folder)
    raw = load_splits(data, selection, {"train": SplitRequest("train")}, source.cache)["train"]
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "word_delimiter_token": "|"}
    texts = [clean(text, data.chars_to_ignore) for text in raw.targets() if text]
    return prepare(
        raw, kind="ctc", num_frames=lambda samples: samples // 320, chars_to_ignore=data.chars_to_ignore,
        tokenizer=CharacterTokenizer(build_vocabulary(texts, **names), **names), cache_dir=source.cache,
        show_progress=False,
    )  # fmt: skip


def peer_decode(stored: dict[str, Any]) -> np.ndarray:
    """Audio column of a row -> `[samples]` float32 mono at 16 kHz, with the calls that one would write."""
    waveform, rate = soundfile.read(
        io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"], dtype="float32"
    )
    if waveform.ndim > 1:
        waveform = waveform.mean(axis=1)
    return waveform if rate == SAMPLE_RATE else soxr.resample(waveform, rate, SAMPLE_RATE)


class Ours:
    """Passes through a split with `TrainLoader`."""

    def __init__(self, source: Source, batch_size: int, workers: int):
        from xtremes_jax.data.loader import TrainLoader

        self.split = prepared(source)
        self.loader = TrainLoader(self.split, batch_size=batch_size, group_by_length=True, num_workers=workers)

    def batches(self, count: int) -> Iterator[tuple[float, int]]:
        """Audio-seconds and bytes of each of `count` batches."""
        with self.loader.iterate() as stream:
            for loaded in itertools.islice(stream, count):
                assert not loaded.skipped, loaded.skipped
                yield loaded.audio_seconds, sum(array.nbytes for array in loaded.batch if array is not None)

    def decode(self, clip: int) -> np.ndarray:
        """`[samples]` of one clip."""
        return self.split.read_audio(clip)


class Torch:
    """Passes through the same rows with PyTorch's DataLoader."""

    def __init__(self, source: Source, batch_size: int, workers: int):
        import torch
        from transformers import Wav2Vec2FeatureExtractor
        from transformers.trainer_pt_utils import LengthGroupedSampler

        torch.set_num_threads(1)
        split = prepared(source)
        self.column, self.workers, self.batch_size = split.raw.audio_column, workers, batch_size
        rows = split.raw.dataset.select_columns([self.column])
        if len(split) < len(rows):
            rows = rows.select(split.rows)
        self.rows = rows.add_column("labels", [labels.tolist() for labels in split.labels])
        self.sampler = LengthGroupedSampler(
            batch_size, lengths=split.num_samples.tolist(), generator=torch.Generator().manual_seed(0)
        )
        # As facebook/wav2vec2-xls-r-300m has it.
        self.extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows of the table -> padded, normalised tensors."""
        import torch

        waveforms = [peer_decode(row[self.column]) for row in rows]
        batch = self.extractor(waveforms, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="pt")
        labels = [torch.tensor(row["labels"]) for row in rows]
        batch["labels"] = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        return batch

    def batches(self, count: int) -> Iterator[tuple[float, int]]:
        """Audio-seconds and bytes of each of `count` batches, epoch after epoch without a gap."""
        from torch.utils.data import BatchSampler, DataLoader

        epochs = (BatchSampler(self.sampler, self.batch_size, drop_last=False) for _ in itertools.count())
        loader = DataLoader(
            self.rows, batch_sampler=_Once(itertools.islice(itertools.chain.from_iterable(epochs), count)),
            num_workers=self.workers, collate_fn=self.collate,
            multiprocessing_context="fork" if self.workers else None,  # what a script has: this process was spawned
        )  # fmt: skip
        for batch in loader:
            audio_seconds = int(batch["attention_mask"].sum()) / SAMPLE_RATE
            yield audio_seconds, sum(tensor.nbytes for tensor in batch.values())

    def decode(self, clip: int) -> np.ndarray:
        """`[samples]` of one clip."""
        return peer_decode(self.rows[clip][self.column])


class _Once:
    """An iterator of batches, of the type that DataLoader expects."""

    def __init__(self, batches: Iterator[list[int]]):
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return self.batches


class Contender:
    """One side in a process of its own; it works only inside `run` and `decode_rate`."""

    def __init__(self, side: str, batch_size: int, workers: int, cpus: set[int]):
        """
        Args:
            side: one of `SIDES`.
            batch_size: rows.
            workers: processes that decode; 0 decodes in the process itself.
            cpus: that the process and what it starts may run on.
        """
        self.side = side
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, side, batch_size, workers, cpus))
        self._process.start()
        other.close()  # so that the process sees the end when this side is closed or gone

    def run(self, source: Source, seconds: float) -> Pass:
        """A pass of at least so many seconds, as `Pass` counts them."""
        return self._ask("run", source, seconds)

    def decode_rate(self, source: Source, seconds: float) -> float:
        """Audio-seconds a processor second of reading, decoding and resampling clips alone, one after the other."""
        return self._ask("decode_rate", source, seconds)

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()

    def _ask(self, *request: Any) -> Any:
        self._connection.send(request)
        answer = self._connection.recv()
        if isinstance(answer, BaseException):
            raise RuntimeError(f"the side {self.side} failed") from answer
        return answer


def _serve(connection: Any, side: str, batch_size: int, workers: int, cpus: set[int]) -> None:
    os.sched_setaffinity(0, cpus)
    pipelines: dict[Source, Any] = {}
    while True:
        try:
            name, source, seconds = connection.recv()
        except EOFError:
            return
        try:
            if source not in pipelines:
                pipelines[source] = {"ours": Ours, "torch": Torch}[side](source, batch_size, workers)
            measure: Callable = {"run": _measured_pass, "decode_rate": _decode_rate}[name]
            connection.send(measure(pipelines[source], seconds, workers))
        except Exception as error:  # for the benchmark's own process to raise
            connection.send(error)
            raise


def _measured_pass(pipeline: Any, seconds: float, workers: int) -> Pass:
    """Batches from the moment that the pipeline is under way.

    The first ones are left out: workers start up in them. From then on batches leave as fast as they are made, so what
    is under way at the beginning and at the end is the same.
    """
    clock = time.perf_counter if workers else time.process_time
    totals, begun = np.zeros(3), None
    with closing(pipeline.batches(1_000_000)) as batches:
        for place, (audio_seconds, size) in enumerate(batches):
            if begun is not None:
                totals += audio_seconds, 1, size
                if clock() - begun >= seconds:
                    break
            elif place >= 2 + 4 * workers:
                begun = clock()
        elapsed = clock() - begun
    _wait_until_idle()
    return Pass(elapsed, totals[0], int(totals[1]), int(totals[2]))


def _wait_until_idle() -> None:
    """Threads that were decoding ahead finish what they had begun: not at the expense of the next measurement."""
    while True:
        used = time.process_time()
        time.sleep(0.05)
        if time.process_time() - used < 0.002:
            return


def _decode_rate(pipeline: Any, seconds: float, workers: int) -> float:
    del workers
    pipeline.decode(0)
    total, begun = 0, time.process_time()
    for clip in itertools.cycle(range(len(pipeline.rows if isinstance(pipeline, Torch) else pipeline.split))):
        total += len(pipeline.decode(clip))
        if (elapsed := time.process_time() - begun) >= seconds:
            return total / SAMPLE_RATE / elapsed


def largest_difference(source: Source, clips: int = 8) -> float:
    """Between the samples of both sides, in steps of 16-bit PCM; what is loud is clipped to its range on both."""
    split = prepared(source)
    worst = 0.0
    for row in split.rows[:clips]:
        stored = next(split.raw.stored(range(row, row + 1)))
        ours = audio.decode(audio.stored_source(stored), split.raw.segment(int(row)))
        theirs = peer_decode(stored)
        scale = 1 if ours.dtype == np.int16 else 2**15
        difference = ours.astype(np.float64) * scale - np.clip(theirs.astype(np.float64) * 2**15, -(2**15), 2**15 - 1)
        worst = max(worst, float(np.abs(difference).max()))
    return worst
