"""Runs of the training loop with a step that only counts, and a diary of what it asks for."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from xtremes_jax.batch import Batch
from xtremes_jax.training.loop import Hooks, Schedule, fit
from xtremes_jax.training.meter import Note
from xtremes_jax.training.signals import StopRequest
from xtremes_jax.training.step import StepMetrics

NOTHING = Note()


def fake_batches(start=0):
    step = start
    while True:
        yield SimpleNamespace(
            batch=Batch(np.ones((2, 100 + step % 2)), *[np.ones((2, 3))] * 5), skipped=(), clips=2, audio_seconds=3.0,
            padded_seconds=4.0, data_wait_s=0.0, global_step=step, sample_ids=(2 * step, 2 * step + 1),
        )  # fmt: skip
        step += 1


def fake_step(finite=lambda step: True):
    """A step whose loss is its number, and which is finite when `finite(step)`."""
    streak = 0

    def step(state, batch):
        nonlocal streak
        good = finite(state)
        streak = 0 if good else streak + 1
        scalar = [jnp.float32(state if good else np.nan), jnp.float32(1), jnp.float32(0.1)]
        return state + 1, StepMetrics(*scalar, jnp.float32(good), jnp.int32(streak))

    return step


class Diary:
    """Hooks that write down what they were called with."""

    def __init__(self, on_evaluate=lambda step: None, on_skipped=lambda: None):
        self.logged, self.evaluated, self.saved, self.owed, self.advanced = [], [], [], [], 0
        self.consumed, self.notes = [], {}
        self._on_evaluate, self._on_skipped = on_evaluate, on_skipped

    def hooks(self) -> Hooks:
        return Hooks(
            log=self.log, evaluate=self.evaluate, save=self.save, consumed=self.consume, nonfinite=self.nonfinite,
            agree=self.agree, advance=self.advance,
        )  # fmt: skip

    def nonfinite(self, step, count):
        self.given_up = (step, count)
        return Path("out/nonfinite.jsonl")

    def consume(self, step, sample_ids):
        self.consumed.append((step, sample_ids))

    def log(self, step, epoch, values):
        self.logged.append((step, values["loss"]))

    def evaluate(self, state, step, epoch):
        self.evaluated.append(step)
        self._on_evaluate(step)
        return step / 100

    def save(self, state, step, score, note):
        self.saved.append((step, score))
        self.owed += [step] * note.evaluation_owed
        self.notes[step] = json.loads(json.dumps(dataclasses.asdict(note)))  # as a checkpoint holds it

    def agree(self, unreadable, old_at):
        self._on_skipped()
        return old_at

    def advance(self):
        self.advanced += 1


def run(diary, *, start=0, steps_per_epoch=4, stop=None, step=None, note=NOTHING, **schedule):
    return fit(
        start, start_step=start, train_step=step or fake_step(), batches=fake_batches(start),
        schedule=Schedule(**{"logging_steps": 2, "eval_steps": None, "save_steps": None, **schedule}),
        hooks=diary.hooks(), stop=stop or StopRequest(),
        epoch_of=lambda done: (done / steps_per_epoch, done % steps_per_epoch == 0), note=note,
    )  # fmt: skip


def losses_of(values):
    """A step with the loss of its number."""

    def step(state, batch):
        scalars = [jnp.float32(values[state]), jnp.float32(1), jnp.float32(0.1), jnp.float32(1), jnp.int32(0)]
        return state + 1, StepMetrics(*scalars)

    return step
