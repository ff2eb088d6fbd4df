"""How the loop ends before its time: signals, errors, programs and memory that fail; what is saved then."""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest
from loops import Diary, fake_batches, fake_step, losses_of, run

from xtremes_jax.errors import InputError
from xtremes_jax.training.ahead import CompilationFailed, OutOfMemory
from xtremes_jax.training.loop import Schedule, fit
from xtremes_jax.training.meter import Meter, Note
from xtremes_jax.training.signals import Interrupted, StopRequest
from xtremes_jax.training.step import StepMetrics


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
