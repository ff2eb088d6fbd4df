"""`--cache_frontend`: the frozen front end computed once a clip, its frames kept in bfloat16 for later epochs and runs.

The training step only ever sees frames. Where a batch's clips are not all stored, a program of its own (one more for
each bucket length, small, without gradients) makes the frames of the audio first; they go into the step, and to the
disk from another thread while the step runs. Where they are stored, the loader reads them in place of the audio:
nothing is decoded, and the front end is not computed. So every epoch, and every run with the same data and front end,
trains on the very same frames. Which clips are stored is looked up when an epoch begins: a run does not depend on how
fast the disk was.

A store is named after all that its frames depend on: the front end's parameters and configuration, the precision and
the kind of device it is computed on, and the clips. Another model or other data are another store.
"""

import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from xtremes_jax.arguments import Arguments
from xtremes_jax.assembly import Network
from xtremes_jax.batch import SAMPLE_RATE, Batch
from xtremes_jax.data.cache import default_cache_dir
from xtremes_jax.data.collate import RESAMPLER_SLACK
from xtremes_jax.data.frames import FORMAT_VERSION, FrameStore, Layout
from xtremes_jax.data.loader import LoadedBatch, TrainLoader
from xtremes_jax.data.prepare import PreparedSplit
from xtremes_jax.errors import InputError
from xtremes_jax.models import ModelConfig, TranslationConfig, is_feature_encoder
from xtremes_jax.training.ahead import CompiledAhead
from xtremes_jax.training.frames import make_frames_step
from xtremes_jax.training.precision import compute_dtype
from xtremes_jax.training.state import TrainState

logger = logging.getLogger(__name__)

UNDER_WAY = 4
"""Batches whose frames are on their way to the disk; each stays on the devices until it is written."""

_CONFIGURATION = "conv_dim conv_kernel conv_stride conv_bias feat_extract_norm feat_extract_activation".split()


class FrontendCache:
    """The frames of a training split: where they come from, and where they go.

    Args:
        store: of the split's clips, in their order.
        frames_step: from `make_frames_step`, compiled ahead; closed with the cache.
        encoder: whose front end that is.
        rows: `[clips]` sample id of each clip.
    """

    def __init__(self, store: FrameStore, frames_step: CompiledAhead, encoder: ModelConfig, rows: np.ndarray):
        self.store, self._frames_step, self._encoder = store, frames_step, encoder
        self._order = np.argsort(rows)
        self._rows = rows[self._order]
        self._thread = ThreadPoolExecutor(1, "frames-to-disk")
        self._under_way: deque[Future] = deque()
        self._writes = True
        self._too_long: set[int] = set()

    def wrap(self, train_step: Callable) -> Callable:
        """The training step `(state, batch) -> (state, metrics)` for batches of audio and of frames alike."""

        def step(state: TrainState, batch: Batch):
            return train_step(state, self.with_frames(state, batch) if batch.frames is None else batch)

        return step

    def with_frames(self, state: TrainState, batch: Batch) -> Batch:
        """The batch with frames in place of its audio; they are on their way to the store."""
        frames = self._frames_step(state.trainable, state.frozen, batch)
        arrays = frames, batch.sample_ids, batch.audio_lengths
        if self._writes:
            for array in arrays:
                array.copy_to_host_async()
            while len(self._under_way) >= UNDER_WAY:
                self._under_way.popleft().result()
            self._under_way.append(self._thread.submit(self._write, *arrays))
        return batch._replace(audio=None, frames=frames)

    def batches(self, loader: TrainLoader, start_step: int) -> "CachedBatches":
        """The loader's batches from a global step on, with frames where all clips of one are stored."""
        return CachedBatches(self, loader, start_step)

    def flush(self) -> None:
        """Waits until all frames that were made are stored."""
        while self._under_way:
            self._under_way.popleft().result()

    def close(self) -> None:
        """Stores what is under way, and closes the files."""
        try:
            self.flush()
        finally:
            self._thread.shutdown(cancel_futures=True)
            self._frames_step.close()
            logger.info(
                "Frames of %d of %d clips are stored in %s", self.store.count, len(self.store), self.store.folder
            )
            if self._too_long:
                logger.warning(
                    "%d clips are longer than their headers say, so their frames were not stored and are computed in "
                    "every epoch; their rows: %s", len(self._too_long), sorted(self._too_long)[:20],
                )  # fmt: skip
            self.store.close()

    def frames_of_edges(self, edges: np.ndarray) -> dict[int, int]:
        """Padded length in samples -> in frames."""
        return {int(edge): int(self._encoder.num_frames(int(edge))) for edge in edges}

    def _write(self, frames: jax.Array, sample_ids: jax.Array, audio_lengths: jax.Array) -> None:
        """In the thread: waits for the devices, and stores the rows that are clips."""
        if not self._writes:
            return
        values = np.asarray(frames).view(np.uint16)
        ids, samples = np.asarray(sample_ids), np.asarray(audio_lengths)
        counts = self._encoder.num_frames(samples)
        heard = np.flatnonzero((ids >= 0) & (samples > 0))
        clips = self._order[np.searchsorted(self._rows, ids[heard])]
        try:
            for row, clip in zip(heard, clips, strict=True):
                if counts[row] > self.store.layout.capacities[clip]:
                    self._too_long.add(int(clip))
                    continue
                self.store.write(int(clip), values[row, : counts[row]], int(samples[row]))
        except OSError as error:
            self._writes = False
            logger.warning(
                "No more frames are stored, the run goes on without: %s cannot be written (%s).", self.store.folder,
                error.strerror,
            )  # fmt: skip


class CachedBatches(Iterator[LoadedBatch]):
    """A loader's batches: each epoch reads what is stored when it begins, until all clips are."""

    def __init__(self, cache: FrontendCache, loader: TrainLoader, start_step: int):
        self._cache, self._loader = cache, loader
        self._edges = cache.frames_of_edges(loader.edges)
        self._begun_with = -1
        self._next_step = start_step
        self._stream = self._open()

    def _open(self):
        """The batches up to the end of the epoch; all that follow if the stored clips are no longer becoming more."""
        stored = self._cache.store.snapshot().for_edges(self._edges)
        settled = stored.count in (len(self._cache.store), self._begun_with)
        self._begun_with = stored.count
        left = self._loader.steps_per_epoch - self._next_step % self._loader.steps_per_epoch
        return self._loader.iterate(self._next_step, stored=stored, **({} if settled else {"steps": left}))

    def __next__(self) -> LoadedBatch:
        asked = time.perf_counter()
        loaded = next(self._stream, None)
        if loaded is None:
            self._cache.flush()
            self._stream = self._open()
            loaded = next(self._stream)
            loaded = replace(loaded, data_wait_s=time.perf_counter() - asked)
        self._next_step += 1
        return loaded

    def close(self) -> None:
        """Stops the loader's threads and workers."""
        self._stream.close()


def check_process_count(arguments: Arguments, count: int) -> None:
    """Refuses `--cache_frontend` in a run of several processes: each would need frames that others have made.

    Args:
        arguments: of the run.
        count: of its processes.

    Raises:
        InputError: it is given in one.
    """
    if arguments.model.cache_frontend and count > 1:
        raise InputError(
            f"--cache_frontend works in one process, and this run has {count}: each would need frames "
            "that others have made. Drop the flag."
        )


def open_frontend_cache(
    arguments: Arguments, split: PreparedSplit, network: Network, state: TrainState, shapes: Sequence[Batch]
) -> FrontendCache:
    """The store of a run's training split, made where there is none yet.

    Args:
        arguments: of the run.
        split: to train on.
        network: whose front end is frozen.
        state: holds the front end's parameters.
        shapes: of the batches to come: the front end is compiled for them ahead.

    Raises:
        InputError: the front end is trained; or the store cannot be made, is in use, or has no room.
    """
    encoder = _encoder(network.config)
    capacities = np.asarray(encoder.num_frames(split.num_samples + RESAMPLER_SLACK), np.int64)
    folder = _folder(arguments) / store_name(arguments, encoder, split, state)
    store = FrameStore(folder, Layout(capacities, encoder.conv_dim[-1]), afresh=arguments.data.overwrite_cache)
    logger.info(
        "--cache_frontend: %.2f GiB of bfloat16 frames for %.2f h of audio in %s; %d of %d clips are there already",
        store.layout.total_bytes / 2**30, split.num_samples.sum() / SAMPLE_RATE / 3600, folder, store.count, len(store),
    )  # fmt: skip
    others, held = store.others()
    if others:
        logger.info(
            "%s also holds %d stores of other data or models, %.2f GiB: delete the folders that no run needs",
            folder.parent, others, held / 2**30,
        )  # fmt: skip
    step = make_frames_step(
        graphdef=network.graphdef, accumulation=arguments.training.gradient_accumulation_steps, mesh=network.mesh
    )
    ahead = CompiledAhead(step, mesh=network.mesh, leading=(state.trainable, state.frozen))
    ahead.announce(shapes)
    return FrontendCache(store, ahead, encoder, split.rows)


def shapes_on_frames(shapes: Sequence[Batch], config: ModelConfig | TranslationConfig) -> list[Batch]:
    """Batches of `jax.ShapeDtypeStruct` with frames in place of audio: what the training step is compiled for."""
    encoder = _encoder(config)

    def frames_of(audio: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = audio.shape[0], encoder.num_frames(audio.shape[1]), encoder.conv_dim[-1]
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=audio.sharding)

    return [batch._replace(audio=None, frames=frames_of(batch.audio)) for batch in shapes]


def _encoder(config: ModelConfig | TranslationConfig) -> ModelConfig:
    return config.encoder if isinstance(config, TranslationConfig) else config


def _folder(arguments: Arguments) -> Path:
    """Where stores lie: `--frontend_cache_dir`, or beside the other prepared data."""
    model = arguments.model
    if model.frontend_cache_dir is not None:
        return Path(os.path.expanduser(model.frontend_cache_dir))
    return (Path(model.cache_dir) / "xtremes_jax" if model.cache_dir else default_cache_dir()) / "frames"


def store_name(arguments: Arguments, encoder: ModelConfig, split: PreparedSplit, state: TrainState) -> str:
    """Of a store: differs wherever the frames do, or where they lie in it.

    Args:
        arguments: of the run.
        encoder: whose front end it is.
        split: whose clips.
        state: holds the front end's parameters.

    Raises:
        InputError: a parameter of the front end is trained.
    """
    trained = [name for name in state.trainable if is_feature_encoder(name)]
    if trained:
        raise InputError(
            f"--cache_frontend needs a front end that does not change, and {trained[0]} is trained. Set "
            "--freeze_feature_encoder True, or drop the flag."
        )
    digest = hashlib.sha256()
    dtype = np.dtype(compute_dtype(fp16=arguments.training.fp16, bf16=arguments.training.bf16)).name
    precision = jax.config.jax_default_matmul_precision
    identity = {name: getattr(encoder, name) for name in (*_CONFIGURATION, "normalize_waveform")}
    identity |= {"format": FORMAT_VERSION, "clips": split.fingerprint, "float": split.is_float}
    identity |= {"dtype": dtype, "platform": jax.default_backend(), "precision": precision}
    digest.update(json.dumps(identity, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(split.rows).tobytes())
    for name in sorted(name for name in state.frozen if is_feature_encoder(name)):
        value = np.ascontiguousarray(jax.device_get(state.frozen[name]))
        digest.update(json.dumps([name, value.dtype.name, value.shape]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:24]
