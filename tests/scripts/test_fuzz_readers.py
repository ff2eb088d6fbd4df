"""Hostile files, drawn anew by Hypothesis: every reader accepts what makes sense and refuses the rest in words."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fuzzing import commands, configs, sound, tables, weights
from fuzzing.reader import Place
from fuzzing.readers import NAMES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xtremes_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "scripts" / "fuzz_readers.py")]


def examples(count: int):
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip


@pytest.fixture(scope="module")
def root():
    """Folders as the fuzzer has them, emptied for each input. (`tmp_path` is one for all examples.)"""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tmp").mkdir()
        yield Place(Path(folder))


def read(root: Place, make, check) -> None:
    """Makes an input in an empty folder and reads it; only an `InputError` may come of it, and no file."""
    here = os.getcwd()
    root.clear()
    make(root.folder)
    before = root.written()
    try:
        os.chdir(root.root / "cwd")
        check(root.folder)
    except InputError as error:
        assert str(error).strip()
    finally:
        os.chdir(here)
    assert root.written() == before


@examples(100)
@given(random=st.randoms(use_true_random=True))
def test_audio(root, random):
    data = sound.hostile_audio(random)
    read(root, lambda folder: None, lambda folder: sound.check_audio(data, None))


@examples(60)
@given(random=st.randoms(use_true_random=True))
def test_manifests(root, random):
    read(root, lambda folder: tables.hostile_manifest(random, folder),
         lambda folder: tables.check_manifest(random, folder, root.root / "tmp"))  # fmt: skip


@examples(30)
@given(random=st.randoms(use_true_random=True))
def test_transcripts(root, random):
    read(root, lambda folder: tables.hostile_transcripts(random, folder),
         lambda folder: tables.check_transcripts(folder, root.root / "tmp"))  # fmt: skip


@examples(100)
@given(random=st.randoms(use_true_random=True))
def test_weights(root, random):
    read(root, lambda folder: weights.hostile_weights(random, folder), weights.check_weights)


@examples(100)
@given(random=st.randoms(use_true_random=True))
def test_configurations(root, random):
    read(root, lambda folder: configs.hostile_config(random, folder),
         lambda folder: configs.check_config(random, folder))  # fmt: skip


@examples(100)
@given(random=st.randoms(use_true_random=True))
def test_arguments(root, random):
    argv, content = commands.hostile_arguments(random)

    def check(folder: Path) -> None:
        try:
            commands.check_arguments(commands.parse_arguments(argv))
        except SystemExit as error:  # --help
            assert error.code == 0

    read(root, lambda folder: None, check)


WORDS = ["--hub_token", "--push_to_hub_token", "--use_auth_token", "--seed", "--task", "mls", "--hub_tokn", "x",
         f"--hub_token={commands.SECRET}", commands.SECRET]  # fmt: skip


@examples(100)
@given(st.lists(st.sampled_from(WORDS), max_size=8))
def test_no_message_about_arguments_repeats_a_token(argv):
    commands.check_secret(argv)


def test_the_same_seed_gives_the_same_inputs_however_many_processes_read_them(tmp_path):
    run = [*COMMAND, "--inputs", "60", "--reader", "audio", "weights", "--failures", str(tmp_path / "failures")]
    tables = []
    for workers in "12":
        report = tmp_path / f"{workers}.json"
        done = subprocess.run([*run, "--workers", workers, "--json", str(report)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        readers = json.loads(report.read_text())["readers"]
        tables.append({name: (found["accepted"], found["refused"]) for name, found in readers.items()})
    assert tables[0] == tables[1] and set(tables[0]) < set(NAMES)


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("raise KeyError('x')", "KeyError"), ("raise InputError('no file is named')", "unnamed file"),
        ("(place.root / 'cwd' / 'x').touch()", "wrote files"), ("bytearray(2 << 30)", "memory"),
        ("raise InputError(f'{place.folder}: bad')", "refused"), ("pass", "accepted"),
        ("require(False, 'no')", "Insane"),
    ],
)  # fmt: skip
def test_what_counts_as_a_failure(tmp_path, source, verdict):
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "scripts")!r}]
from random import Random
from pathlib import Path
from fuzzing.reader import Place, Reader, require
from fuzzing.worker import judge
from xtremes_jax.errors import InputError
def read(random, place):
    {source}
place = Place(Path({str(tmp_path)!r}))
place.clear()
print(judge(Reader("x", None, read), Random(0), place).verdict)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == verdict
