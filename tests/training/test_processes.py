"""What processes say to each other, with real ones."""

import os
import re
import signal
import sys
import threading
import time
from types import SimpleNamespace

import jax
import pytest
from several import Company, free_address, talk

from xtremes_jax.errors import InputError
from xtremes_jax.training import launch, processes
from xtremes_jax.training.processes import Wishes
from xtremes_jax.training.signals import Interrupted, StopRequest


def test_alone_there_is_nobody_to_talk_to():
    assert processes.count() == 1 and processes.is_first() and not processes.several()
    assert processes.gather({"a": 1}) == [{"a": 1}] and processes.from_first(lambda: 7) == 7
    processes.check_same("Flags", {"seed": 1}, "…")
    assert processes.Agreement()(Wishes(stop=15, old_at=1)) == Wishes(stop=15, old_at=1)


def test_three_processes_agree():
    company = talk(
        3,
        """
        import jax
        from xtremes_jax.training.sharding import make_mesh, place, array_sharding, to_host
        import numpy as np
        me = processes.index()
        with processes.ending_together():
            assert processes.gather({"me": me}) == [{"me": 0}, {"me": 1}, {"me": 2}]
            assert processes.from_first(lambda: ["only", me]) == ["only", 0]
            order = time.time()
            with processes.first_goes_ahead():
                order = time.time()
                time.sleep(0.3 * (me == 0))
            began = processes.gather(order)
            assert min(began[1:]) >= began[0] + 0.3, began
            processes.check_same("Flags", {"seed": 1, "only here": None}, "…")
            try:
                processes.check_same("Flags", {"seed": 7 if me == 2 else 1}, "Give the same.")
            except InputError as error:
                assert str(error) == (
                    "Flags: process 2 has seed 7, and process 0 has 1 (1 such differences). Give the same."), error
            else:
                raise AssertionError
            mesh = make_mesh(3)
            agreement, agreed = processes.Agreement(), []
            for step in range(8):
                stop, save, untold = me == 1 and step >= 2, me == 2 and step == 3, step == 4
                agreed.append(tuple(agreement(processes.Wishes(15 * stop, int(save), me * untold))))
            assert agreed == [(0, 0, 0)] * 4 + [(15, 0, 0), (15, 1, 0), (15, 0, 2), (15, 0, 0)], agreed
            values = np.random.default_rng(5).standard_normal((600, 300), np.float32)
            whole = place(values, array_sharding(mesh, values.shape))
            assert whole.addressable_shards[0].data.shape == (200, 300)
            assert np.array_equal(to_host(whole), values)
        print("done", processes.several())
        """,
    )
    for ended in company.wait(120):
        assert ended.status == 0 and "done False" in ended.output, ended.output[-3000:]


def test_programs_of_two_processes_are_compiled_ahead_and_kept_where_both_see_them(tmp_path):
    company = talk(
        2,
        f"""
        import jax, numpy as np
        from concurrent.futures import wait
        from xtremes_jax.batch import Batch
        from xtremes_jax.training.ahead import CompiledAhead
        from xtremes_jax.training.compilation_cache import share_compilation_cache, use_compilation_cache
        from xtremes_jax.training.sharding import batch_sharding, make_mesh, replicated
        from pathlib import Path

        jax.config.update("jax_enable_compilation_cache", True)
        for folder, kept in (("shared", True), (processes.index(), False), ("none", False)):
            folder = folder if folder == "none" else f"{tmp_path}/{{folder}}"
            use_compilation_cache(folder, Path({str(tmp_path)!r}))
            share_compilation_cache()
            assert (jax.config.jax_compilation_cache_dir is not None) == kept, folder
        processes.gather(None)
        assert not [*Path({str(tmp_path)!r}).rglob(".shared-*")]

        mesh = make_mesh()
        def batch(samples):
            fields = [np.ones((1, samples), np.int16), np.ones((1, 2), np.int32)]
            audio, labels = (jax.make_array_from_process_local_data(batch_sharding(mesh), field) for field in fields)
            return Batch(audio, None, labels, None, None, None)
        step = CompiledAhead(
            jax.jit(lambda batch: batch.audio.sum() * len(batch.labels), out_shardings=replicated(mesh)), mesh=mesh,
            leading=())
        with processes.ending_together(), step:
            step.announce([batch(10), batch(20)])
            wait(step._futures.values(), timeout=60)
            assert len(step.programs) == 2
            assert [int(step(batch(samples))) for samples in (20, 10)] == [80, 40]
        print("done")
        """,
    )
    for ended in company.wait(120):
        assert ended.status == 0 and "done" in ended.output, ended.output[-3000:]


def test_an_error_of_one_process_ends_all_with_its_words():
    company = talk(
        3,
        """
        from xtremes_jax import command
        def run(arguments):
            if processes.index() == 1:
                time.sleep(1)
                raise InputError("clip 7 of fr is broken. Mend it.")
            processes.from_first(lambda: time.sleep(100))
        from types import SimpleNamespace
        arguments = SimpleNamespace(training=SimpleNamespace(
            log_level="info", use_cpu=True, coordinator_address=None, num_processes=1, process_id=None))
        command.leave(command.run_command(lambda argv: arguments, run, []))
        """,
    )
    first, second, third = company.wait(90)
    assert [first.status, second.status, third.status] == [2, 2, 2], (first, second, third)
    assert "[process 1] error: clip 7 of fr is broken. Mend it." in second.output
    for index, other in ((0, first), (2, third)):
        assert f"[process {index}] Process 1 has ended the run: error: clip 7 of fr is broken" in other.output
        assert other.seconds < second.seconds + 20


def test_a_first_process_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(launch, "JOIN_TIMEOUT_SECONDS", 1)
    with pytest.raises(InputError, match=r"do not find each other at 127\.0\.0\.1:1: .*refused\. Start all of them"):
        launch.join(launch.Launch("127.0.0.1:1", 2, 1))
    assert not jax.distributed.is_initialized()


def test_clips_that_end_a_run_are_listed_before_any_process_ends_it(tmp_path):
    company = talk(
        2,
        f"""
        from pathlib import Path
        from xtremes_jax import command, corpus
        from xtremes_jax.data.prepare import SkippedClip
        write = corpus.write_skipped
        corpus.write_skipped = lambda *values: (time.sleep(4), write(*values))  # a slow disk
        def run(arguments):
            skipped = corpus.SkippedClips(Path({str(tmp_path)!r}), 0.1)
            skipped._sizes = {{"train": 5}}
            skipped.add([SkippedClip("train", 3, "c.flac", "broken.")] * processes.index())
            skipped.tell()
        from types import SimpleNamespace
        arguments = SimpleNamespace(training=SimpleNamespace(
            log_level="info", use_cpu=True, coordinator_address=None, num_processes=1, process_id=None))
        command.leave(command.run_command(lambda argv: arguments, run, []))
        """,
    )
    for ended in company.wait(90):  # both find it out, and one may hear of the other's end first
        assert ended.status == 2 and "error: 1 of 5 clips of split train" in ended.output, ended
    assert "c.flac" in (tmp_path / "skipped.jsonl").read_text()


def test_a_first_process_that_nobody_joins():
    """JAX by itself aborts it, with a stack in C++."""
    code = """if True:
        from xtremes_jax.training import launch
        launch.JOIN_TIMEOUT_SECONDS = 1
        launch.join(launch.Launch("ADDRESS", 2, 0))
    """
    (ended,) = Company([[sys.executable, "-c", code.replace("ADDRESS", free_address())]]).wait(60)
    assert ended.status == 2, ended.output
    assert re.search(r"error: The processes .* not all of them have come within 1 s\. Start all of them", ended.output)


def test_with_others_a_signal_counts_when_all_have_agreed():
    with StopRequest(shared=True) as stop:
        with stop.deferred():
            with stop.deferred(wait=False):
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.01)
            assert stop.asked == signal.SIGUSR1 and stop.received is None
            stop.check()
            stop.obey(signal.SIGTERM)  # another process has had that one, at the same time
            assert stop.received == signal.SIGTERM
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()
    with StopRequest(shared=True) as stop, pytest.raises(Interrupted, match="SIGUSR1"):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1)


def test_with_others_a_signal_that_nobody_heard_of_counts_in_the_end():
    with StopRequest(shared=True) as stop:
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            stop.check()
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()


def test_a_first_process_that_is_busy_for_a_while_is_not_lost(monkeypatch):
    """Its machine may be out of breath; only when it has not answered for long is the run over."""
    now, asked, over = [0.0], [], threading.Event()

    def answer(key):
        asked.append(now[0])
        now[0] += 8.0
        if len(asked) == 6:
            over.set()
        raise jax.errors.JaxRuntimeError("NOT_FOUND: no" if len(asked) % 3 == 0 else "UNAVAILABLE: too busy")

    monkeypatch.setattr(processes, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(processes.global_state, "client", SimpleNamespace(key_value_try_get=answer))
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("the run is given up"))
    processes._watch(over)
    assert len(asked) == 6


def test_facts_that_are_long_are_cut(monkeypatch):
    monkeypatch.setattr(processes, "gather", lambda facts: [facts, {"labels": "b" * 500}])
    with pytest.raises(InputError) as caught:
        processes.check_same("Data", {"labels": "a" * 500}, "Copy it.")
    assert len(str(caught.value)) < 250
