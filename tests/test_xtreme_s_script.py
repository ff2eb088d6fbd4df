"""`scripts/xtreme_s.sh` with a stub in place of Python: which commands it gives, what it skips, how it fails."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from xtremes_jax.arguments import parse_arguments
from xtremes_jax.evaluation.benchmark import COUNTED
from xtremes_jax.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
SEVEN = "mls voxpopuli fleurs-asr covost2 minds14 fleurs-lang_id fleurs-retrieval".split()

STUB = """#!/usr/bin/env bash
set -euo pipefail
if [ "$1" = -c ]; then
    shift 2
    printf '%q ' "$@" >>"$LOG.checks"
    echo >>"$LOG.checks"
    exit 0
fi
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
    """Runs the script with the stub, in a folder with spaces in its name: (finished process, commands).

    `script.checks` has the subsets and the flags that were checked before all commands.
    """
    stub, log, checks, place = (tmp_path / name for name in ("stub", "log", "log.checks", "some where"))
    stub.write_text(STUB)
    stub.chmod(0o755)
    place.mkdir()

    def call(*arguments, **environment):
        log.write_text("")
        checks.write_text("")
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / "xtreme_s.sh"), *arguments], capture_output=True, text=True, cwd=place,
            env={"PATH": os.environ["PATH"], "PYTHON": str(stub), "LOG": str(log), **environment},
        )  # fmt: skip
        call.checks = [shlex.split(line) for line in checks.read_text().splitlines()]
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
    assert script.checks == [[flag(command, "--task"), *command[2:]] for command in commands[:7]]


def test_finished_subsets_are_skipped_and_a_failure_stops_and_can_be_gone_on_from(script):
    done, commands = script("demo-model", "demo", "out", FAIL="covost2")
    assert done.returncode == 7 and tasks_of(commands) == SEVEN[:4] and len(commands) == 4
    assert "error: covost2 failed (status 7)" in done.stderr and "same command again" in done.stderr
    done, commands = script("demo-model", "demo", "out")
    assert done.returncode == 0 and tasks_of(commands) == SEVEN[3:] == [task for task, *_ in script.checks]
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
        (("m", "d", "out"), {"TASKS": " \n "}, "TASKS names no subset: choose from mls voxpopuli"),
        (("m", "d", "out"), {"TASKS": "mls babel"}, "babel needs the LDC's packages: set BABEL_DIR"),
        (("m", "demo", "out"), {"TASKS": "babel", "BABEL_DIR": ""}, "babel needs the LDC's packages: set BABEL_DIR"),
        (("m", "d", "out"), {"PYTHON": "/nowhere/python"}, "/nowhere/python is not there"),
    ):
        done, commands = script(*arguments, **environment)
        assert done.returncode == 2 and message in done.stderr and commands == [], message
    done, commands = script("m", "d", "out", TASKS="mls minds14")
    assert done.returncode == 0 and tasks_of(commands) == ["mls", "minds14"]


def test_a_flag_that_one_subset_refuses_is_told_of_before_anything_runs(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "xtreme_s.sh"), "demo-model", "demo", "out", "--", "--embedding_dim", "8"],
        capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, "TASKS": "fleurs-retrieval mls"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "" and list(tmp_path.iterdir()) == []
    assert "error: mls: --embedding_dim is for retrieval, not for mls" in done.stderr
    assert "nothing has been run" in done.stderr and "Traceback" not in done.stderr


def test_subsets_may_stand_on_several_lines_and_the_score_is_of_all_that_are_finished(script):
    done, commands = script("m", "d", "out", TASKS="\n  minds14\n\tmls\n")
    assert done.returncode == 0 and tasks_of(commands) == ["minds14", "mls"]
    assert commands[-1] == ["-m", "xtremes_jax.score", "out/mls", "out/minds14"]
    done, commands = script("m", "d", "out", TASKS="babel", BABEL_DIR="ldc")
    assert tasks_of(commands) == ["babel"]
    assert commands[-1] == ["-m", "xtremes_jax.score", "out/mls", "out/minds14", "out/babel"]
    done, commands = script("m", "d", "out", TASKS="voxpopuli")
    assert commands[-1][2:] == ["out/mls", "out/voxpopuli", "out/minds14", "out/babel"]


def test_the_demo_has_settings_of_its_own_which_given_flags_override(script):
    _, commands = script("demo-model", "demo", "out")
    found = {flag(command, "--task"): command for command in commands[:7]}
    steps = {task: int(flag(command, "--max_steps")) for task, command in found.items()}
    assert steps == dict(zip(SEVEN, (600, 350, 400, 450, 400, 300, 300), strict=True))
    rates = {task: flag(command, "--learning_rate") for task, command in found.items()}
    assert rates == dict.fromkeys(SEVEN, "1.5e-3") | {"minds14": "1e-3", "fleurs-lang_id": "1e-3"}
    sizes = {task: flag(command, "--per_device_train_batch_size") for task, command in found.items()}
    assert sizes == dict.fromkeys(SEVEN, "8") | {"fleurs-retrieval": "24"}
    _, commands = script("demo-model", "demo", "other", "--", "--learning_rate", "5e-4", "--max_steps", "2")
    assert {flag(command, "--learning_rate") for command in commands[:7]} == {"5e-4"}
    _, commands = script("me/model", "demo", "real", TASKS="minds14")
    assert flag(commands[0], "--learning_rate") == "3e-4", "a pretrained model keeps its own"
