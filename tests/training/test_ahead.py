"""Programs compiled ahead: the right one for each shape, each compiled once, errors that say which."""

import os
import signal
import threading
import time
from concurrent.futures import wait

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.batch import Batch
from xtremes_jax.training.ahead import CompilationFailed, CompiledAhead, worker_count
from xtremes_jax.training.sharding import batch_sharding, make_mesh, replicated
from xtremes_jax.training.signals import Interrupted, StopRequest


@pytest.fixture
def mesh():
    return make_mesh()


def batch_of(rng, mesh, samples, labels=3, rows=8):
    fields = Batch(
        audio=rng.integers(-9, 9, (rows, samples)).astype(np.int16), audio_lengths=np.full(rows, samples, np.int32),
        labels=rng.integers(0, 5, (rows, labels)).astype(np.int32), label_lengths=np.full(rows, labels, np.int32),
        weight=rng.random(rows).astype(np.float32), sample_ids=np.arange(rows, dtype=np.int32),
    )  # fmt: skip
    return jax.device_put(fields, batch_sharding(mesh))


def announced(batch):
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), batch)


class Step:
    """A step that adds up, notes what it is traced for, and may be held up or fail there."""

    def __init__(self, mesh):
        self.traced, self.threads, self.gates, self.broken = [], [], {}, set()
        place = replicated(mesh)
        self.jitted = jax.jit(self._step, donate_argnums=0, out_shardings=(place, place))
        self.state = jax.device_put({"sum": jnp.zeros((3,), jnp.int32)}, place)

    def _step(self, state, batch):
        samples = batch.audio.shape[1]
        self.traced.append(samples)
        self.threads.append(threading.current_thread())
        if samples in self.gates:
            assert self.gates[samples].wait(timeout=60)
        if samples in self.broken:
            raise ValueError("no room")
        total = batch.audio.sum(dtype=jnp.int32)
        return {"sum": state["sum"] + total}, total

    def run(self, ahead, batch):
        self.state, total = ahead(self.state, batch)
        return int(total)


def total_of(batch):
    return int(np.asarray(batch.audio, np.int64).sum())


def test_each_batch_runs_the_program_of_its_shape(rng, mesh):
    step = Step(mesh)
    batches = [batch_of(rng, mesh, samples) for samples in (400, 640, 400, 960, 640)]
    with CompiledAhead(step.jitted, mesh=mesh, leading=(step.state,), workers=2) as ahead:
        ahead.announce(announced(batch) for batch in batches[:2])
        ahead.announce(batches[1:3])  # arrays do as well, and a shape is compiled once
        assert [step.run(ahead, batch) for batch in batches] == [total_of(batch) for batch in batches]
    assert sorted(step.traced) == [400, 640, 960] and len(ahead.programs) == ahead.announced == 3
    # Not announced, and compiled at once; not in the main thread, where a signal would wait until it is done.
    assert step.threads[step.traced.index(960)].name == "compile-now"
    assert threading.main_thread() not in [step.threads[step.traced.index(samples)] for samples in (400, 640)]
    np.testing.assert_array_equal(step.state["sum"], [sum(total_of(batch) for batch in batches)] * 3)


def test_labels_are_part_of_the_shape(rng, mesh):
    step = Step(mesh)
    with CompiledAhead(step.jitted, mesh=mesh, leading=(step.state,)) as ahead:
        for labels in (3, 4):
            step.run(ahead, batch_of(rng, mesh, 400, labels))
    assert step.traced == [400, 400]


def test_nothing_is_compiled_twice(rng, mesh):
    step, compiled = Step(mesh), []

    def note(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    batches = [batch_of(rng, mesh, samples) for samples in (400, 640)]
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        with CompiledAhead(step.jitted, mesh=mesh, leading=(step.state,)) as ahead:
            ahead.announce(batches)
            for batch in batches * 3:
                step.run(ahead, batch)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert len(compiled) == len(ahead.programs) == 2


def test_a_step_waits_for_its_own_program_alone(rng, mesh):
    step = Step(mesh)
    step.gates[640] = threading.Event()
    first, held, queued = (batch_of(rng, mesh, samples) for samples in (400, 640, 960))
    with CompiledAhead(step.jitted, mesh=mesh, leading=(step.state,), workers=1) as ahead:
        ahead.announce([first, held, queued])
        assert step.run(ahead, first) == total_of(first)
        assert step.run(ahead, queued) == total_of(queued)  # the only worker is held up: compiled here
        assert 640 not in [shape[0][1] for shape in ahead.programs]
        step.gates[640].set()
        assert step.run(ahead, held) == total_of(held)
    assert sorted(step.traced) == [400, 640, 960]


def test_an_error_says_for_which_batch_and_stops_no_other_step(rng, mesh, caplog):
    step = Step(mesh)
    step.broken.add(16_000)
    good, bad = batch_of(rng, mesh, 400), batch_of(rng, mesh, 16_000, labels=5)
    with CompiledAhead(step.jitted, mesh=mesh, leading=(step.state,), workers=1) as ahead:
        ahead.announce([bad])
        with pytest.raises(CompilationFailed, match="8 clips of 1.0 s with 5 labels each cannot be compiled: no room"):
            step.run(ahead, bad)
        assert step.run(ahead, good) == total_of(good)
        step.broken.clear()  # such as memory that other work has given back
        assert step.run(ahead, bad) == total_of(bad)


def test_what_failed_ahead_is_told_of_and_tried_again_when_it_is_needed(rng, mesh, caplog):
    step, batch = Step(mesh), batch_of(rng, mesh, 16_000, labels=5)
    step.broken.add(16_000)
    with CompiledAhead(step.jitted, mesh=mesh, leading=(step.state,), workers=1) as ahead:
        ahead.announce([batch])
        wait(ahead._futures.values())
        step.broken.clear()
        assert step.run(ahead, batch) == total_of(batch)
    assert "could not be compiled ahead" in caplog.text and "no room" in caplog.text


@pytest.mark.parametrize("platform, announced", [("gpu", 0), ("tpu", 1), ("cpu", 1)])
def test_several_processes_of_gpus_compile_when_a_batch_comes(rng, mesh, monkeypatch, platform, announced):
    step = Step(mesh)
    with CompiledAhead(step.jitted, mesh=mesh, leading=(step.state,)) as ahead:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        ahead.announce([batch_of(rng, mesh, 400)])
        assert ahead.announced == announced


def test_closing_leaves_what_is_not_begun(rng, mesh):
    step = Step(mesh)
    step.gates[400] = threading.Event()
    ahead = CompiledAhead(step.jitted, mesh=mesh, leading=(step.state,), workers=1)
    ahead.announce([batch_of(rng, mesh, samples) for samples in (400, 640, 960)])
    closing = threading.Thread(target=ahead.close)
    closing.start()
    step.gates[400].set()
    closing.join(timeout=60)
    assert not closing.is_alive() and len(ahead.programs) <= 1
    ahead.close()


def test_evaluation_comes_after_training_in_the_same_threads(rng, mesh):
    training, evaluation = Step(mesh), Step(mesh)
    training.gates[400] = threading.Event()
    batches = [batch_of(rng, mesh, samples) for samples in (400, 640, 960)]
    later = CompiledAhead(evaluation.jitted, mesh=mesh, leading=(evaluation.state,))
    with CompiledAhead(training.jitted, mesh=mesh, leading=(training.state,), workers=1) as ahead:
        ahead.announce(batches[:2])
        later.announce(batches[:2], after=ahead)
        assert evaluation.traced == []
        training.gates[400].set()
        wait([*ahead._futures.values(), *later._futures.values()])
        assert training.traced == evaluation.traced == [400, 640]
        assert set(training.threads) == set(evaluation.threads)
        assert evaluation.run(later, batches[0]) == total_of(batches[0]) and evaluation.traced == [400, 640]


def test_what_the_closed_step_has_left_is_announced_again(rng, mesh):
    training, evaluation = Step(mesh), Step(mesh)
    training.gates[400] = threading.Event()
    batches = [batch_of(rng, mesh, samples) for samples in (400, 640, 960)]
    later = CompiledAhead(evaluation.jitted, mesh=mesh, leading=(evaluation.state,), workers=1)
    ahead = CompiledAhead(training.jitted, mesh=mesh, leading=(training.state,), workers=1)
    ahead.announce(batches[:1])
    later.announce(batches, after=ahead)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    while not all(future.cancelled() for future in later._futures.values()):
        time.sleep(0.01)
    training.gates[400].set()
    closing.join(timeout=60)
    assert evaluation.run(later, batches[1]) == total_of(batches[1])  # needed before it is announced again
    with later:
        later.announce(batches)
        wait(later._futures.values())
    later.announce([])  # it may go on after it has been closed
    later.close()
    assert evaluation.traced == [640, 400, 960] and len(later.programs) == 3
    assert [evaluation.run(later, batch) for batch in batches] == [total_of(batch) for batch in batches]


@pytest.mark.parametrize("begun", [True, False])
def test_a_signal_in_an_evaluation_is_no_failed_compilation(rng, mesh, begun):
    """Whether the program is waited for, or compiled here: nothing is compiled anew, and the signal is what is told."""
    step, batch = Step(mesh), batch_of(rng, mesh, 400)
    step.gates[400] = threading.Event()
    with CompiledAhead(step.jitted, mesh=mesh, leading=(step.state,)) as ahead, StopRequest():
        if begun:
            ahead.announce([batch])
            while not step.traced:
                time.sleep(0.01)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Interrupted):
            step.run(ahead, batch)
        step.gates[400].set()
        wait(ahead._futures.values())
    assert step.traced == [400]


def test_an_idle_machine_is_not_filled_with_compilers(monkeypatch):
    for cores, workers in ((1, 1), (2, 1), (8, 2), (16, 4), (192, 4)):
        monkeypatch.setattr("os.sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        assert worker_count() == workers


def test_a_signal_while_waiting_is_kept_for_the_loop(rng, mesh):
    step, batch = Step(mesh), batch_of(rng, mesh, 400)
    step.gates[400] = threading.Event()

    def interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        step.gates[400].set()

    with CompiledAhead(step.jitted, mesh=mesh, leading=(step.state,)) as ahead, StopRequest() as stop, stop.deferred():
        ahead.announce([batch])
        threading.Timer(0.2, interrupt).start()
        assert step.run(ahead, batch) == total_of(batch) and stop.received == signal.SIGTERM
