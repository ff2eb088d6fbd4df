"""When the loop logs, evaluates and saves, with a step that only counts."""

import dataclasses
import time

import jax.numpy as jnp
import numpy as np
import pytest
from loops import Diary, fake_batches, fake_step, run

from xtremes_jax.errors import InputError
from xtremes_jax.training.loop import Schedule, fit
from xtremes_jax.training.meter import Note
from xtremes_jax.training.signals import StopRequest
from xtremes_jax.training.step import StepMetrics


def test_steps_and_the_end():
    diary = Diary()
    state, report = run(diary, total_steps=7, eval_steps=3, save_steps=6)
    assert state == report.steps == diary.advanced == 7 and report.clips == 14
    assert diary.logged == [(2, 0.5), (4, 2.5), (6, 4.5), (7, 6.0)]  # the mean of the losses since the last line
    assert diary.evaluated == [3, 6]
    assert diary.saved == [(6, 0.06), (7, None)]
    assert report.loss_sum == sum(range(7)) and report.logged_steps == 7


@pytest.mark.parametrize("total_steps, expected", [(8, [4, 8]), (6, [4, 6]), (2, [2])])
def test_epochs_end_with_the_run(total_steps, expected):
    diary = Diary()
    run(diary, total_steps=total_steps, eval_steps="epoch", save_steps="epoch", logging_steps="epoch")
    assert diary.evaluated == [step for step, _ in diary.saved] == [step for step, _ in diary.logged] == expected
    assert all(score == step / 100 for step, score in diary.saved)


def test_the_first_step_is_told_of_once():
    diary, told = Diary(), []
    hooks = dataclasses.replace(diary.hooks(), started=lambda report: told.append((report.steps, diary.advanced)))
    fit(
        3, start_step=3, train_step=fake_step(), batches=fake_batches(3), hooks=hooks, stop=StopRequest(),
        schedule=Schedule(total_steps=7, logging_steps=1, eval_steps=None, save_steps=None),
        epoch_of=lambda done: (done / 4, False),
    )  # fmt: skip
    assert told == [(1, 0)]


def test_the_host_is_never_more_than_two_steps_ahead(monkeypatch):
    waited = []

    def wait(tree):
        waited.extend(int(metrics.loss) for metrics in tree)
        return tree

    monkeypatch.setattr("xtremes_jax.training.loop.jax.block_until_ready", wait)
    run(Diary(), total_steps=6, logging_steps=None)
    assert waited == [0, 0, 1, 2, 3], "the first step for its time; then, at each, the one before the last"


def test_a_finished_run_does_nothing():
    diary = Diary()
    state, report = run(diary, start=7, total_steps=7, save_steps=1)
    assert (state, report.steps, diary.saved) == (7, 0, [])


def test_without_logging_losses_are_still_counted_and_watched():
    diary = Diary()
    _, report = run(diary, total_steps=30, logging_steps=None, max_nonfinite_steps=10)
    assert diary.logged == [] and report.loss_sum == sum(range(30))
    with pytest.raises(InputError, match="learning_rate"):
        run(diary, total_steps=99, logging_steps=None, max_nonfinite_steps=10, step=fake_step(lambda step: step < 5))


def test_steps_that_were_left_out_are_not_in_the_mean():
    diary = Diary()
    run(diary, total_steps=4, logging_steps=4, step=fake_step(lambda step: step != 2))
    assert diary.logged == [(4, pytest.approx(4 / 3))]


def test_the_last_score_goes_with_a_last_save_that_was_not_due():
    diary = Diary()
    run(diary, total_steps=6, eval_steps=3, save_steps=4)
    assert diary.saved == [(4, None), (6, 0.06)]


def test_an_old_checkpoint_is_no_candidate_for_the_best(monkeypatch):
    """`--save_seconds`: which checkpoint is best must not depend on the clock."""
    diary, now = Diary(), [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(state, batch, step=fake_step()):  # noqa: B008
        now[0] += 10
        return step(state, batch)

    run(diary, total_steps=6, eval_steps=2, save_seconds=20.0, save_steps=6, step=slow)
    assert diary.saved == [(2, None), (4, None), (6, 0.06)] and diary.evaluated == [2, 4, 6]


def test_a_score_stays_with_its_step():
    diary, finite = Diary(), fake_step(lambda step: step < 4)
    with pytest.raises(InputError, match="not finite"):
        run(diary, total_steps=9, eval_steps=4, save_steps=100, logging_steps=1, max_nonfinite_steps=1, step=finite)
    assert diary.evaluated == [4] and diary.saved == [(5, None)]


class Scalar:
    """A step's scalar that writes down when it is brought to the host."""

    def __init__(self, value, reads, step):
        self.value, self.reads, self.step = value, reads, step

    def __array__(self, dtype=None, copy=None):
        self.reads.append(self.step)
        return np.asarray(self.value, dtype)


def test_scalars_are_read_when_they_are_logged_and_not_before():
    diary, reads, done = Diary(), [], []

    def step(state, batch):
        assert all(read_at <= max(logged for logged, _ in diary.logged) for read_at in reads)
        done.append(state)
        return state + 1, StepMetrics(*(Scalar(value, reads, state + 1) for value in (1.0, 1.0, 0.1, 1.0, 0)))

    run(diary, total_steps=9, step=step, logging_steps=4)
    assert len(done) == 9 and sorted(set(reads)) == list(range(1, 10))
    assert [at for at, _ in diary.logged] == [4, 8, 9]


def test_a_checkpoint_is_written_when_the_last_one_is_old(monkeypatch):
    """The clock is of the steps: each takes 10 s. A save that comes by its step counts too."""
    diary, now = Diary(), [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(state, batch, step=fake_step()):  # noqa: B008
        now[0] += 10
        return step(state, batch)

    run(diary, total_steps=12, save_seconds=30.0, save_steps=5, step=slow)
    assert [step for step, _ in diary.saved] == [3, 5, 8, 10, 12]


def test_an_old_checkpoint_is_replaced_once_although_all_hear_of_it_two_steps_later(monkeypatch):
    """With other processes what one of them finds is known to all after two more steps, which find the same."""
    diary, now, found = Diary(), [1000.0], [0, 0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(state, batch, step=fake_step()):  # noqa: B008
        now[0] += 10
        return step(state, batch)

    def later(unreadable, old_at):
        found.append(old_at)
        return found.pop(0)

    fit(
        0, start_step=0, train_step=slow, batches=fake_batches(), stop=StopRequest(),
        hooks=dataclasses.replace(diary.hooks(), agree=later),
        schedule=Schedule(total_steps=15, logging_steps=2, eval_steps=None, save_steps=13, save_seconds=50.0),
        epoch_of=lambda done: (done / 4, False),
    )  # fmt: skip
    # Old after 5 steps, and after 5 more; then the schedule's comes before all have heard that it is old again.
    assert [step for step, _ in diary.saved] == [7, 13, 15]


@pytest.mark.parametrize("jump, warned", [(2.9, False), (3.2, True)])
def test_a_loss_that_jumps_is_warned_of_once_by_its_step(jump, warned, caplog):
    losses = [4.0, 1.0, 2.0, 1.0, 3.0, 1.5, jump * 1.5, 1.0]  # the median of the five before is 1.5

    def step(state, batch, counting=fake_step()):  # noqa: B008
        _, metrics = counting(state, batch)
        return state + 1, metrics._replace(loss=jnp.float32(losses[state]))

    run(Diary(), total_steps=8, logging_steps=1, step=step)
    assert ("jumped to 4.8 at step 7, from about 1.5 before" in caplog.text) == warned
    assert caplog.text.count("jumped") == warned


def test_the_last_checkpoint_knows_the_whole_run():
    """A run that is killed after it, before its results are written, finds them there."""
    diary = Diary()
    run(diary, total_steps=7, logging_steps=3, save_steps=7)
    note = Note(**diary.notes[7])
    assert note.unlogged["metrics"] == [] and (note.loss_sum, note.logged_steps) == (21.0, 7)
    _, report = run(diary, start=7, note=note, total_steps=7, logging_steps=3)
    assert (report.loss_sum, report.logged_steps) == (21.0, 7) and diary.logged == [(3, 1.0), (6, 4.0), (7, 6.0)]


def test_without_log_lines_a_checkpoint_does_not_grow_with_the_run():
    diary = Diary()
    _, report = run(diary, total_steps=200, logging_steps=None, save_steps=50, max_nonfinite_steps=10)
    assert max(len(note["unlogged"]["metrics"]) for note in diary.notes.values()) <= 10
    assert report.loss_sum == sum(range(200)) and report.logged_steps == 200


def test_without_a_strategy_but_with_a_clock_the_end_is_saved():
    diary = Diary()
    run(diary, total_steps=5, save_seconds=1000.0)
    assert diary.saved == [(5, None)]
