"""`scripts/slurm.sbatch` with stand-ins for Slurm's commands and real signals."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sbatch"
STAND_INS = {
    "srun": '[ "$1" = --kill-on-bad-exit=1 ] && shift && exec "$@"',
    "scontrol": 'echo "$@" >"$OUT/requeued"',
    # As a run does: it saves, which takes a while, and ends with 128 and the signal's number.
    "python": 'trap "sleep 0.3; touch $OUT/saved; exit 138" USR1; echo "$@" >"$OUT/begun"; eval "$BEHAVIOUR"',
}


@pytest.fixture
def started(tmp_path):
    """Starts the script with a run that behaves in some way, when that run has begun."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def start(behaviour, *flags):
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path), "BEHAVIOUR": behaviour,
            "SLURM_JOB_ID": "4711",
        }  # fmt: skip
        process = subprocess.Popen(["bash", str(SCRIPT), *flags], env=environment, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not (tmp_path / "begun").exists():
            time.sleep(0.01)
        return process

    return start


def test_before_the_limit_the_run_saves_and_the_job_is_queued_again(started, tmp_path):
    process = started("for i in {1..600}; do sleep 0.1; done", "--output_dir", "a b", "--do_train")
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert (tmp_path / "saved").exists(), "the script waits until the run has saved"
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert (tmp_path / "begun").read_text() == "-m xtremes_jax.train --output_dir a b --do_train\n"
    assert r"python -m xtremes_jax.train --output_dir a\ b --do_train" in errors


@pytest.mark.parametrize("status", [0, 2])
def test_a_run_that_ends_by_itself_is_not_queued_again(started, tmp_path, status):
    process = started(f"exit {status}", "--do_train")
    process.communicate(timeout=60)
    assert process.returncode == status and not (tmp_path / "requeued").exists()


def test_a_run_that_would_start_afresh_each_time_is_refused(started, tmp_path):
    process = started("exit 0", "--overwrite_output_dir")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "Leave it out" in errors and not (tmp_path / "begun").exists()


def test_a_token_among_the_flags_is_refused_and_not_repeated(started, tmp_path):
    process = started("exit 0", "--push_to_hub", "--hub_token", "hf_secret")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "Export HF_TOKEN" in errors and "hf_secret" not in errors
    assert not (tmp_path / "begun").exists()


def test_a_dry_run_prints_every_command_and_runs_none(tmp_path):
    done = subprocess.run(
        ["bash", str(SCRIPT), "--do_train"], env=os.environ | {"DRY_RUN": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "+ srun --kill-on-bad-exit=1 python -m xtremes_jax.train --do_train", "+ scontrol requeue JOB",
    ]  # fmt: skip
