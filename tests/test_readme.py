"""The commands that README.md prints are ones that the programs take, every flag with an effect."""

import re
import shlex
from pathlib import Path

import pytest

from xtremes_jax.arguments import parse_arguments, parse_evaluate_arguments, parse_plan_arguments

ROOT = Path(__file__).resolve().parent.parent
PARSERS = {
    "xtremes_jax.train": parse_arguments,
    "xtremes_jax.evaluate": parse_evaluate_arguments,
    "xtremes_jax.plan": lambda words: parse_plan_arguments(words).run,
}


def commands() -> list[list[str]]:
    """The words of each command in the README's shell blocks, from the module's name on."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[2:] for line in words if line[:2] == ["python", "-m"] and line[2] in PARSERS]


def test_every_task_has_its_command():
    given = [" ".join(command) for command in commands()]
    for task in ("mls", "covost2", "minds14", "fleurs-retrieval"):
        assert any(f"--task {task}" in command for command in given), task


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_readme_commands_are_taken(command):
    module, *words = command
    assert PARSERS[module](words).notes == ()


def test_files_that_the_readme_names_are_there():
    for path in re.findall(r"bash (scripts/\S+\.sh)", (ROOT / "README.md").read_text("utf-8")):
        assert (ROOT / path).is_file(), path
