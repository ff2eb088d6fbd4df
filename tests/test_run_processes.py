"""Whole runs of several real processes: against a run of one, through stops and deaths."""

import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import write_corpus
from runs import flags, parameters, rows
from several import talk, train_together

NOISY = dict(hidden_dropout=0.1, layerdrop=0.1, mask_time_prob=0.3)
BATCH = 8
"""Clips of a step over all devices, whatever their number."""


def command(corpus, output, *, devices, **changes):
    per_device = dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), BATCH // devices)
    scored = dict(eval_strategy="steps", eval_steps=2, save_steps=2, max_steps=6, max_buckets=1)
    scored |= dict(max_skipped_fraction=0.2, logging_steps=1)
    return flags(corpus, output, "mls.all", **(NOISY | scored | per_device | changes))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Tones, one clip of each split damaged where its header does not tell."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    for split in ("train", "validation"):
        path = folder / "mls.all" / f"{split}.parquet"
        table = pq.read_table(path)
        clips = table.column("audio").to_pylist()
        content = clips[5]["bytes"]
        clips[5]["bytes"] = content[: len(content) // 2] + bytes(len(content) - len(content) // 2)
        table = table.set_column(1, table.field(1), [clips])
        pq.write_table(table, path)
    return folder


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The run of one process with four devices."""
    output = tmp_path_factory.mktemp("whole") / "run"
    (ended,) = train_together(1, command(corpus, output, devices=4), devices=4).wait()
    assert ended.status == 0, ended.output[-3000:]
    return output


def test_one_process_then_two_then_four(corpus, whole, tmp_path):
    """Two steps by one process, two by two with split parameters, two by four: all as if by one alone."""
    output = tmp_path / "run"
    (output / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / "2", output / "checkpoints" / "2")
    for name in ("metrics.jsonl", "batches.jsonl"):
        shutil.copy(whole / name, output / name)

    two = train_together(2, command(corpus, output, devices=4, fsdp_devices=4), devices=2)
    two.wait_for(0, "step 3/6")
    two.processes[1].send_signal(signal.SIGTERM)  # of one process alone
    for index, ended in enumerate(two.wait()):
        assert ended.status == 128 + signal.SIGTERM, ended.output[-3000:]
        assert f"[process {index}] Stopped by SIGTERM; the same command goes on from here." in ended.output
    stopped_at = max(int(path.name) for path in (output / "checkpoints").iterdir())
    assert 3 <= stopped_at < 6

    four = train_together(4, command(corpus, output, devices=4), devices=1)
    for index, ended in enumerate(four.wait()):
        assert ended.status == 0, ended.output[-3000:]
        # The first process alone speaks of the run.
        for said in (f"Going on from step {stopped_at}", "step 6/6", "validation split, 9 clips"):
            assert (said in ended.output) == (index == 0), ended.output[-3000:]
    assert rows(output / "batches.jsonl") == rows(whole / "batches.jsonl")
    assert rows(output / "skipped.jsonl") == rows(whole / "skipped.jsonl") and len(rows(whole / "skipped.jsonl")) == 2
    for name in ("loss", "eval_loss"):
        ours, theirs = (
            [row[name] for row in rows(folder / "metrics.jsonl") if name in row] for folder in (output, whole)
        )
        assert len(theirs) == (6 if name == "loss" else 3)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert rows(output / "eval_predictions.jsonl") == rows(whole / "eval_predictions.jsonl")
    mine, expected = parameters(output), parameters(whole)
    for name, value in expected.items():
        np.testing.assert_allclose(mine[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_process_that_is_killed_takes_the_others_along():
    """They agree at every step, as a run does, until one of them is gone."""
    company = talk(
        2,
        """
        from types import SimpleNamespace
        from xtremes_jax import command
        def run(arguments):
            agreement = processes.Agreement()
            for step in range(10**9):
                agreement(processes.Wishes())
                if step == 9:
                    print("under way")
        arguments = SimpleNamespace(training=SimpleNamespace(
            log_level="info", use_cpu=True, coordinator_address=None, num_processes=1, process_id=None))
        command.leave(command.run_command(lambda argv: arguments, run, []))
        """,
    )
    for index in range(2):
        company.wait_for(index, "under way")
    company.processes[1].kill()
    statuses = [process.wait(timeout=60) for process in company.processes]
    assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, None)
    said = company.wait()[0].output
    assert "another process may be lost" in " ".join(said.split()) or "another task died" in said, said[-3000:]


def test_a_process_with_another_command_line_is_found_out(corpus, tmp_path):
    company = train_together(
        2, command(corpus, tmp_path / "run", devices=2), devices=1, only={1: ["--learning_rate", "1"]}
    )
    for ended in company.wait(120):
        assert ended.status == 2
        assert "Flags: process 1 has learning_rate 1.0, and process 0 has 0.002 (1 such differences)." in ended.output


def test_an_output_directory_that_is_not_shared(tmp_path):
    company = talk(
        2,
        f"""
        from xtremes_jax import run_directory
        run_directory._SHARED_WITHIN_SECONDS = 1
        folder = f"{tmp_path}/{{processes.index()}}"
        os.makedirs(folder, exist_ok=True)
        try:
            with run_directory.RunDirectory(folder, overwrite=False, training=True):
                time.sleep(3)  # as the first process, which finds nothing wrong, and is told by the other's end
        except InputError as error:
            print("said:", error)
        print("left:", os.listdir(folder), flush=True)
        with run_directory.RunDirectory(folder, overwrite=False, training=False):
            print("scored")  # which the first process alone writes down
        os._exit(0)
        """,
    )
    first, second = company.wait(60)
    assert f"said: --output_dir {tmp_path}/1 of process 1 is not that of process 0" in second.output, second.output
    assert "left: []" in second.output and "scored" in second.output
