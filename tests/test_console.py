"""What is printed at the end of a run, and how it ends when the disk is full."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from xtremes_jax import console
from xtremes_jax.tasks import TASKS

RESULTS = {"predict_samples": 4, "predict_bleu": 21.5, "predict_bleu_fr.en": 30.0, "predict_bleu_it.en": 13.0}


def shown(results, capsys, folder) -> str:
    """What is printed of a run that has scored a prediction split."""
    split = SimpleNamespace(languages=["fr.en", "it.en", "it.en", "fr.en"])
    arguments = SimpleNamespace(
        selection=SimpleNamespace(task=TASKS["covost2"]),
        data=SimpleNamespace(dataset_name="my/data", eval_split_name="validation", predict_split_name="test"),
        training=SimpleNamespace(do_train=True),
    )
    corpus = SimpleNamespace(splits={"predict": split}, synthetic=False)
    console.show_results(results, arguments, corpus, folder)
    return capsys.readouterr().out


def test_results_of_an_earlier_run_on_another_split_are_not_shown(capsys, tmp_path):
    earlier = {"eval_samples": 9, "eval_bleu": 12.0}
    assert shown(RESULTS | earlier, capsys, tmp_path) == shown(RESULTS, capsys, tmp_path)


def test_groups_of_directions_are_shown_with_what_they_lack(capsys, tmp_path):
    out = shown(RESULTS, capsys, tmp_path)
    assert "average   21.5000\nfr.en     30.0000\nit.en     13.0000\n" in out
    assert "bleu, high resource languages (without de es ca): 30.00\n" in out
    assert "bleu, mid resource languages (without fa ru pt zh): 13.00\n" in out and "low resource" not in out


ENDS = """
import sys, threading
from types import SimpleNamespace

import pytest
from xtremes_jax import command
training = SimpleNamespace(
    log_level="info", do_train=True, overwrite_output_dir=False, use_cpu=True, coordinator_address=None,
    num_processes=None, process_id=None,
)
def run(arguments):
    threading.Thread(target=threading.Event().wait, args=(120,)).start()  # as one that waits for a write, or the hub
    FAIL
command.run_program(lambda: command.run_command(lambda argv: SimpleNamespace(training=training), run, []))
"""


def ended(fail: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", ENDS.replace("FAIL", fail)], capture_output=True, text=True, timeout=60
    )


def test_an_error_that_nobody_expected_waits_for_no_thread():
    done = ended("raise KeyError('frames')")
    assert done.returncode == 1 and done.stderr.rstrip().endswith("KeyError: 'frames'")
    assert "Traceback (most recent call last)" in done.stderr


def test_a_full_disk_ends_the_run_at_once_with_a_sentence():
    done = ended("print('x', file=open('/dev/full', 'w'), flush=True)")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: No space left on device. Make room; the same command" in done.stderr


READERS = {
    "a table": "from xtremes_jax.score import FORMATS\nfrom xtremes_jax.streams import say\nsay('row\\n' * 20_000)",
    "help": "from xtremes_jax import score\nscore.main(['--help'])",
    "log lines and a bar": """
import logging
from xtremes_jax import console
console.set_up("info")
bar = console.Bar(total=9, start=0, hidden=False)
for step in range(9):
    bar.advance()
    logging.getLogger("xtremes_jax.test").info("line " * 2_000)
bar.close()
""",
}


@pytest.mark.parametrize("what", READERS)
def test_a_reader_that_has_gone_ends_nothing(what, tmp_path):
    """As `head` goes when it has read its lines."""
    done = tmp_path / "done"
    script = f"{READERS[what]}\nopen({str(done)!r}, 'w').close()"
    if what == "help":
        script = f"import atexit\natexit.register(lambda: open({str(done)!r}, 'w').close())\n{script}"
    errors = subprocess.STDOUT if "log" in what else subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        process.stdout.close()
        said = process.stderr.read() if process.stderr else ""
    assert process.returncode == 0 and said == "" and done.exists()


def test_a_broken_pipe_of_another_kind_stays_an_error():
    with pytest.raises(BrokenPipeError):
        console.say(_Broken())


class _Broken:
    def __str__(self):
        raise BrokenPipeError("of a worker")


def test_the_absence_of_pytorch_is_no_news():
    script = """
import sys
sys.modules["torch"] = None
from xtremes_jax import console
console.set_up("info")
import transformers
transformers.logging.get_logger("transformers").warning("other news")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "PyTorch was not found" not in done.stderr and "other news" in done.stderr
