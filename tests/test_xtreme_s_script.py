"""`scripts/xtreme_s.sh` with a stub in place of Python: which commands it gives, what it skips, how it fails."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from xtremes_jax.arguments import parse_arguments
from xtremes_jax.evaluation.benchmark import COUNTED
from xtremes_jax.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
SEVEN = "mls voxpopuli fleurs-asr covost2 minds14 fleurs-lang_id fleurs-retrieval".split()

STUB = """#!/usr/bin/env bash
set -euo pipefail
printf '%q ' "$@" >>"$LOG"
echo >>"$LOG"
[ "$2" = xtremes_jax.train ] || { echo "score of ${*: -1}"; exit 0; }
folder=${*: -1}
mkdir -p "$folder"
[ "$(basename "$folder")" != "${FAIL:-}" ] || exit 7
touch "$folder/run.json" "$folder/predict_results.json"
"""


@pytest.fixture
def script(tmp_path):
    """Runs the script with the stub, in a folder with spaces in its name: (finished process, commands)."""
    stub, log, place = tmp_path / "stub", tmp_path / "log", tmp_path / "some where"
    stub.write_text(STUB)
    stub.chmod(0o755)
    place.mkdir()

    def call(*arguments, **environment):
        log.write_text("")
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / "xtreme_s.sh"), *arguments], capture_output=True, text=True, cwd=place,
            env={"PATH": os.environ["PATH"], "PYTHON": str(stub), "LOG": str(log), **environment},
        )  # fmt: skip
        return done, [shlex.split(line) for line in log.read_text().splitlines()]

    return call


def flag(command: list[str], name: str) -> str:
    """The value that counts: the last one."""
    return command[len(command) - command[::-1].index(name)]


def tasks_of(commands: list[list[str]]) -> list[str]:
    return [flag(command, "--task") for command in commands if command[1] == "xtremes_jax.train"]


def test_it_runs_all_seven_subsets_and_ends_with_the_score(script):
    done, commands = script("demo-model", "demo", "out put")
    assert done.returncode == 0, done.stderr
    assert tasks_of(commands) == SEVEN and set(COUNTED) < set(SEVEN) <= {*TASKS, "fleurs-retrieval"}
    for task, command in zip(SEVEN, commands, strict=False):
        assert command[:2] == ["-m", "xtremes_jax.train"] and flag(command, "--output_dir") == f"out put/{task}"
        assert flag(command, "--dataset_name") == "demo" and int(flag(command, "--max_steps")) >= 100
        config = json.loads(Path(flag(command, "--config_name")).read_text())
        assert config["model_type"] == "wav2vec2"
        assert ("--decoder_config_name" in command) == (task == "covost2")
    folders = [f"out put/{task}" for task in SEVEN]
    assert commands[7:] == [
        ["-m", "xtremes_jax.score", "--format", "json", *folders], ["-m", "xtremes_jax.score", *folders],
    ]  # fmt: skip
    assert done.stdout.endswith("score of out put/fleurs-retrieval\n")


def test_finished_subsets_are_skipped_and_a_failure_stops_and_can_be_gone_on_from(script):
    done, commands = script("demo-model", "demo", "out", FAIL="covost2")
    assert done.returncode == 7 and tasks_of(commands) == SEVEN[:4] and len(commands) == 4
    assert "error: covost2 failed (status 7)" in done.stderr and "same command again" in done.stderr
    done, commands = script("demo-model", "demo", "out")
    assert done.returncode == 0 and tasks_of(commands) == SEVEN[3:]
    assert "== mls is finished: out/mls" in done.stdout
    done, commands = script("demo-model", "demo", "out")
    assert done.returncode == 0 and [command[1] for command in commands] == ["xtremes_jax.score"] * 2


def test_a_real_model_and_flags_for_every_subset(script):
    done, commands = script("me/model", "google/xtreme_s", "out", "--", "--bf16", "--num_train_epochs", "2",
                            "--run_name", "a b", DECODER="me/decoder", BABEL_DIR="/the ldc")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tasks_of(commands) == [*SEVEN, "babel"]
    for task, command in zip([*SEVEN, "babel"], commands, strict=False):
        assert flag(command, "--model_name_or_path") == "me/model" and "--config_name" not in command
        assert flag(command, "--num_train_epochs") == "2" and flag(command, "--run_name") == "a b"
        assert "--bf16" in command and ("--data_dir" in command) == (task == "babel")
        assert flag(command, "--metric_for_best_model") == COUNTED.get(task, "wer" if task == "babel" else "loss")
    assert flag(commands[3], "--decoder_name_or_path") == "me/decoder"
    assert flag(commands[7], "--data_dir") == "/the ldc" and flag(commands[7], "--dataset_name") == "google/xtreme_s"


@pytest.mark.parametrize("arguments", [("demo-model", "demo"), ("me/model", "google/xtreme_s")])
def test_its_flags_are_ones_that_training_takes(script, arguments):
    done, commands = script(*arguments, "out", DECODER="me/decoder", BABEL_DIR="ldc")
    assert done.returncode == 0, done.stderr
    for command in commands:
        if command[1] != "xtremes_jax.train" or flag(command, "--task") not in TASKS:
            continue
        parsed = parse_arguments(command[2:])
        assert parsed.training.do_train and parsed.training.do_predict and parsed.notes == ()


def test_what_it_cannot_do_is_said_before_anything_runs(script):
    for arguments, environment, message in (
        (("demo-model", "demo"), {}, "give MODEL DATASET OUT"),
        (("m", "d", "out", "--bf16"), {}, "--bf16: flags of xtremes_jax.train come behind --"),
        (("m", "d", "out"), {}, "covost2 needs a decoder: set DECODER"),
        (("m", "d", "out"), {"TASKS": "mls asr"}, "TASKS: asr is none of mls voxpopuli"),
        (("m", "d", "out"), {"PYTHON": "/nowhere/python"}, "/nowhere/python is not there"),
    ):
        done, commands = script(*arguments, **environment)
        assert done.returncode == 2 and message in done.stderr and commands == [], message
    done, commands = script("m", "d", "out", TASKS="mls minds14")
    assert done.returncode == 0 and tasks_of(commands) == ["mls", "minds14"]
