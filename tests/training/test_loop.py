"""When the loop logs, evaluates, saves and stops, with a step that only counts."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.batch import Batch
from xtremes_jax.errors import InputError
from xtremes_jax.training.ahead import CompilationFailed, OutOfMemory
from xtremes_jax.training.loop import Hooks, Schedule, fit
from xtremes_jax.training.meter import Meter, Note
from xtremes_jax.training.signals import Interrupted, StopRequest
from xtremes_jax.training.step import StepMetrics


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


NOTHING = Note()


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


def test_a_signal_saves_and_stops():
    with StopRequest() as stop, stop.deferred():
        diary = Diary(on_skipped=lambda: diary.advanced == 2 and os.kill(os.getpid(), signal.SIGTERM))
        state, _ = run(diary, total_steps=9, stop=stop, eval_steps=3)
        assert state == 3 and stop.received == signal.SIGTERM
        assert diary.saved == [(3, None)] and diary.evaluated == []  # a short grace period is for saving
        assert diary.owed == [3]
        with pytest.raises(Interrupted) as interruption:
            stop.check()
    assert interruption.value.status == 143


def test_a_signal_breaks_an_evaluation_off():
    with StopRequest() as stop, stop.deferred():
        diary = Diary(on_evaluate=lambda step: os.kill(os.getpid(), signal.SIGINT))
        run(diary, total_steps=9, stop=stop, eval_steps=3)
    assert diary.saved == [(3, None)] and stop.received == signal.SIGINT
    assert diary.owed == [3]


def test_a_signal_in_the_last_evaluation_stops_the_run_too():
    with StopRequest() as stop, stop.deferred():
        diary = Diary(on_evaluate=lambda step: os.kill(os.getpid(), signal.SIGTERM))
        run(diary, total_steps=3, stop=stop, eval_steps=3, save_steps=3)
    assert stop.received == signal.SIGTERM and diary.saved == [(3, None)] and diary.owed == [3]


@pytest.mark.parametrize("total_steps, evaluated", [(3, [3]), (7, [3, 6])])
def test_an_evaluation_that_is_owed_comes_first(total_steps, evaluated):
    diary = Diary()
    run(diary, start=3, total_steps=total_steps, note=Note(evaluation_owed=True), eval_steps=3, save_steps=3)
    assert diary.evaluated == evaluated and diary.owed == []
    assert diary.saved[: len(evaluated)] == [(step, step / 100) for step in evaluated]


def test_the_last_score_goes_with_a_last_save_that_was_not_due():
    diary = Diary()
    run(diary, total_steps=6, eval_steps=3, save_steps=4)
    assert diary.saved == [(4, None), (6, 0.06)]


def test_outside_the_loop_a_signal_stops_at_once_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("planned", [False, True])
def test_a_stop_makes_no_step_a_candidate_for_the_best(planned):
    """A signal in a step that is evaluated: scored as in a run that goes on, and best only if it is saved there too."""
    whole, first, second = Diary(), Diary(), Diary()
    every = dict(total_steps=8, eval_steps=2, save_steps=3 if planned else 4)
    run(whole, **every)
    counting = fake_step()

    def step(state, batch):
        if state == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return counting(state, batch)

    with StopRequest() as stop, stop.deferred():
        run(first, stop=stop, step=step, **every)
    assert first.owed == [6] and first.evaluated == [2, 4]
    run(second, start=6, note=Note(**first.notes[6]), **every)
    assert first.evaluated + second.evaluated == whole.evaluated
    scores = [{step: score for step, score in saved if score} for saved in (whole.saved, first.saved + second.saved)]
    assert scores[0] == scores[1] and (6 in scores[0]) == planned


def test_an_old_checkpoint_is_no_candidate_for_the_best(monkeypatch):
    """`--save_seconds`: which checkpoint is best must not depend on the clock."""
    diary, now = Diary(), [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(state, batch, step=fake_step()):  # noqa: B008
        now[0] += 10
        return step(state, batch)

    run(diary, total_steps=6, eval_steps=2, save_seconds=20.0, save_steps=6, step=slow)
    assert diary.saved == [(2, None), (4, None), (6, 0.06)] and diary.evaluated == [2, 4, 6]


def test_a_signal_that_has_waited_ends_what_would_wait_long():
    with StopRequest() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted), stop.deferred(wait=False):
            raise AssertionError("nothing is waited for")


def test_a_signal_is_not_caught_as_an_error():
    """Data preparation and libraries catch every `Exception`, to try again or to go on without."""
    with pytest.raises(Interrupted), StopRequest(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)


def test_what_was_trained_is_saved_before_an_error():
    def complain():
        if diary.advanced == 4:
            raise InputError("too many clips")

    diary = Diary(on_skipped=complain)
    with pytest.raises(InputError, match="too many clips"):
        run(diary, total_steps=9, save_steps=100)
    assert diary.saved == [(5, None)]


def test_an_evaluation_that_fails_is_owed():
    def complain(step):
        raise CompilationFailed("no room")

    diary = Diary(on_evaluate=complain)
    with pytest.raises(CompilationFailed):
        run(diary, total_steps=9, eval_steps=3, save_steps=100)
    assert diary.saved == [(3, None)] and diary.owed == [3]


def test_an_evaluation_that_is_due_when_the_gradients_fail_is_owed():
    diary, finite = Diary(), fake_step(lambda step: step < 3)
    with pytest.raises(InputError, match="not finite"):
        run(diary, total_steps=9, eval_steps=4, save_steps=100, logging_steps=1, max_nonfinite_steps=1, step=finite)
    assert diary.saved == [(4, None)] and diary.owed == [4] and diary.evaluated == []


def test_a_score_stays_with_its_step():
    diary, finite = Diary(), fake_step(lambda step: step < 4)
    with pytest.raises(InputError, match="not finite"):
        run(diary, total_steps=9, eval_steps=4, save_steps=100, logging_steps=1, max_nonfinite_steps=1, step=finite)
    assert diary.evaluated == [4] and diary.saved == [(5, None)]


def test_what_was_trained_is_saved_before_a_step_that_cannot_be_compiled():
    good = fake_step()

    def step(state, batch):
        if state == 3:
            raise CompilationFailed("no room")
        return good(state, batch)

    diary = Diary()
    with pytest.raises(CompilationFailed):
        run(diary, total_steps=9, save_steps=100, step=step)
    assert diary.saved == [(3, None)]


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


def test_lines_of_a_run_that_stops_between_them_are_as_if_it_had_not():
    """Steps before and after the stop share a log line, the mean of all losses, and the list of clips."""
    whole, first, second = Diary(), Diary(), Diary()
    _, expected = run(whole, total_steps=7, logging_steps=3)

    stop = StopRequest()
    with stop, stop.deferred():
        ends_it = dataclasses.replace(
            first.hooks(), advance=lambda: first.saved or os.kill(os.getpid(), signal.SIGUSR1)
        )
        state, _ = fit(
            0, start_step=0, train_step=fake_step(), batches=fake_batches(), hooks=ends_it, stop=stop,
            schedule=Schedule(total_steps=7, logging_steps=3, eval_steps=None, save_steps=100),
            epoch_of=lambda done: (done / 4, False),
        )  # fmt: skip
    assert stop.received == signal.SIGUSR1 and first.logged == []
    assert first.saved == [(state, None)] and state == 1

    note = first.notes[1]
    _, report = run(second, start=1, note=Note(**note), total_steps=7, logging_steps=3)
    assert first.logged + second.logged == whole.logged == [(3, 1.0), (6, 4.0), (7, 6.0)]
    assert first.consumed + second.consumed == whole.consumed
    assert (report.loss_sum, report.logged_steps) == (expected.loss_sum, expected.logged_steps) == (21.0, 7)


def test_the_clock_of_a_log_line_goes_on_where_it_stopped(monkeypatch):
    diary, noted = Diary(), {}
    run(diary, total_steps=2, logging_steps=5, save_steps=1)
    noted = diary.notes[1]["unlogged"]
    assert noted["audio_seconds"] == 3.0 and noted["padded_seconds"] == 4.0 and len(noted["metrics"]) == 1
    now = time.perf_counter()
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert Meter.going_on(noted | {"elapsed": 12.5}).summary()["audio_seconds_per_second"] == 3.0 / 12.5


@pytest.mark.parametrize("where", ["batch", "program"])
def test_a_signal_ends_the_waiting_for_a_batch_or_a_program(where):
    """What is waited for never comes: only the signal ends it."""

    def wait_for_ever():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Event().wait(60)

    def batches():
        source = fake_batches()
        yield next(source)
        if where == "batch":
            wait_for_ever()
        yield next(source)

    stop, diary, counting = StopRequest(), Diary(), fake_step()

    def step(state, batch):
        if where == "program" and state == 1:
            with stop.deferred(wait=False):
                wait_for_ever()
        return counting(state, batch)

    with stop, stop.deferred():
        state, _ = fit(
            0, start_step=0, train_step=step, batches=batches(), hooks=diary.hooks(), stop=stop,
            schedule=Schedule(total_steps=9, logging_steps=3, eval_steps=None, save_steps=100),
            epoch_of=lambda done: (done / 4, False),
        )  # fmt: skip
    assert state == 1 and stop.received == signal.SIGTERM and diary.saved == [(1, None)]


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


def test_the_clips_of_steps_that_are_given_up_on_are_listed():
    diary, saved = Diary(), pytest.raises(InputError, match=r"last 3 steps were not finite.* listed in out/nonfinite")
    with saved:
        finite = fake_step(lambda step: step not in (1, 4, 5, 6))
        run(diary, total_steps=99, logging_steps=1, max_nonfinite_steps=3, step=finite)
    assert diary.given_up == (7, 3)


def test_memory_that_is_lacking_is_explained_and_nothing_saved_of_a_state_that_is_gone():
    """A real failure of XLA's allocator: the second step needs 64 TiB."""

    @functools.partial(jax.jit, donate_argnums=0)
    def greedy(state, size):
        grid = jnp.arange(1 << 23, dtype=jnp.float32) + state
        return state + 1, jnp.sort(grid[:, None] * grid[None, : 1 << 21], axis=0).sum()

    counting, diary = fake_step(), Diary()

    def step(state, batch):
        if float(state) == 0:
            return state + 1, counting(0, batch)[1]
        state, loss = greedy(state, 1)
        return state, counting(1, batch)[1]._replace(loss=loss)

    explained = r"not hold batches of 2 clips of 0\.0 s with 3 labels each\. Lower --per.* XLA says: RESOURCE_EXHAUSTED"
    with pytest.raises(OutOfMemory, match=explained):
        fit(
            jnp.zeros(()), start_step=0, train_step=step, batches=fake_batches(), hooks=diary.hooks(),
            stop=StopRequest(), schedule=Schedule(total_steps=9, logging_steps=1, eval_steps=None, save_steps=100),
            epoch_of=lambda done: (done / 4, False),
        )  # fmt: skip


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


def test_a_signal_in_a_destructor_is_not_lost_and_says_nothing(capsys):
    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    hook = sys.unraisablehook
    with StopRequest() as stop:
        Dying()
        with pytest.raises(Interrupted):
            stop.check()
    assert "Traceback" not in capsys.readouterr().err and sys.unraisablehook is hook


def test_the_lines_before_a_stop_count_for_a_jump_after_it(caplog):
    diary = Diary()
    run(diary, total_steps=6, logging_steps=1, save_steps=6, step=losses_of([1.0] * 9))
    note = Note(**diary.notes[6])
    assert note.losses == [1.0] * 5
    run(Diary(), start=6, total_steps=7, logging_steps=1, note=note, step=losses_of([1.0] * 6 + [4.0]))
    assert "jumped to 4 at step 7, from about 1 before" in caplog.text


def losses_of(values):
    """A step with the loss of its number."""

    def step(state, batch):
        scalars = [jnp.float32(values[state]), jnp.float32(1), jnp.float32(0.1), jnp.float32(1), jnp.int32(0)]
        return state + 1, StepMetrics(*scalars)

    return step


def test_without_log_lines_a_checkpoint_does_not_grow_with_the_run():
    diary = Diary()
    _, report = run(diary, total_steps=200, logging_steps=None, save_steps=50, max_nonfinite_steps=10)
    assert max(len(note["unlogged"]["metrics"]) for note in diary.notes.values()) <= 10
    assert report.loss_sum == sum(range(200)) and report.logged_steps == 200


def test_without_a_strategy_but_with_a_clock_the_end_is_saved():
    diary = Diary()
    run(diary, total_steps=5, save_seconds=1000.0)
    assert diary.saved == [(5, None)]


def test_memory_that_lacks_is_told_with_the_batch_that_needed_it(monkeypatch):
    """The devices tell of it when two more steps are queued, whose batches are of other lengths."""
    failed, real = [], jax.block_until_ready

    def wait(tree):
        if any(leaf in failed for leaf in jax.tree.leaves(tree) if isinstance(leaf, str)):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(tree) if not isinstance(tree, StepMetrics) else tree

    def step(state, batch):
        if state == 2:
            failed.append("step 3")
        loss = "step 3" if state == 2 else jnp.float32(1)
        return state + 1, StepMetrics(loss, *[jnp.float32(1)] * 3, jnp.int32(0))

    monkeypatch.setattr("xtremes_jax.training.loop.jax.block_until_ready", wait)
    with pytest.raises(OutOfMemory, match=r"batches of 2 clips of 0\.0 s"):
        run(Diary(), total_steps=9, logging_steps=None, save_steps=100, step=step)
