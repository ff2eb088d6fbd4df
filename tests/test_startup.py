"""From the beginning of a run to its first step: a second run takes its programs from the first one's cache."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from types import SimpleNamespace

import jax
import pytest
from corpora import write_corpus
from runs import ROOT, flags, rows, run_elsewhere

from xtremes_jax import train
from xtremes_jax.scoring import Scorer
from xtremes_jax.startup import StartUp, process_begun
from xtremes_jax.training.ahead import CompiledAhead


def test_a_second_run_compiles_nothing(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", train=12)
    home = tmp_path / "home"
    losses = []
    for name in ("cold", "warm"):
        arguments = flags(corpus, tmp_path / name, "mls.all", do_eval=None, save_strategy="no")
        environment = {"XDG_CACHE_HOME": str(home), "JAX_COMPILATION_CACHE_DIR": ""}
        done = run_elsewhere(arguments, **environment, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / name / "train_results.json").read_text())
        programs = results["train_compilations"]
        assert 1 <= programs <= results["train_buckets"] == 2
        assert results["train_compilations_cached"] == (programs if name == "warm" else 0)
        parts = [value for key, value in results.items() if key.startswith("train_start_") and "_seconds" in key]
        assert 2 * results["train_start_seconds"] == pytest.approx(sum(parts))
        assert "First step after" in done.stderr and "from the cache" in done.stderr
        losses.append([row["loss"] for row in rows(tmp_path / name / "metrics.jsonl")])
    assert losses[0] == losses[1]
    kept = list((home / "xtremes_jax" / "compiled").glob("*/jit_train_step-*-cache"))
    assert len(kept) >= programs


TRANSLATION = {"decoder_config_name": "tiny", "translation_vocab_size": 40, "max_buckets": 1}


@pytest.mark.parametrize("config, changes", [("mls.all", {"do_predict": True}), ("covost2.all", TRANSLATION)])
def test_a_split_is_scored_by_programs_that_were_compiled_in_the_background(tmp_path, monkeypatch, config, changes):
    compiled, foreground, scored = [], [], []
    compile_one, score = CompiledAhead._compile, Scorer._score

    def noted(ahead, batch):
        compiled.append((ahead._step.__name__, threading.current_thread() is threading.main_thread()))
        return compile_one(ahead, batch)

    def watched(scorer, *parameters):
        wait(scorer.step._futures.values())
        before = len(foreground)
        result = score(scorer, *parameters)
        scored.append((scorer.role, len(foreground) - before))
        return result

    def note(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            foreground.extend([duration] * (threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr(CompiledAhead, "_compile", noted)
    monkeypatch.setattr(Scorer, "_score", watched)
    corpus = write_corpus(tmp_path / "corpus", train=12, other=6)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        arguments = flags(corpus, tmp_path / "out", config, eval_strategy="steps", eval_steps=2, **changes)
        assert train.main(arguments) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert scored == [("eval", 0)] * 3 + [("predict", 0)] * ("do_predict" in changes)
    background = [name for name, is_main in compiled if not is_main]
    steps = background.count("eval_step")
    assert background[-steps:] == ["eval_step"] * steps and steps >= 1 and ("eval_step", True) not in compiled


def test_recognition_is_prepared_without_transformers(tmp_path):
    """It takes a second to import, three with torch: the finished model's files are soon enough."""
    corpus = write_corpus(tmp_path / "corpus", train=4, other=1)
    code = """
import sys
from xtremes_jax import train
status = train.main(sys.argv[1:])
sys.exit(status or "transformers" in sys.modules or "torch" in sys.modules)
"""
    arguments = flags(corpus, tmp_path / "out", "mls.all", do_eval=None, preprocessing_only=True)
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "The data is prepared" in done.stderr, done.stderr


def test_the_stopwatch_adds_up(caplog):
    startup = StartUp(time.time() - 7)
    startup.mark("imports")
    startup.mark("data")
    assert startup.results() == {}
    report = SimpleNamespace(wait_seconds=0.25, compile_seconds=0.5)
    with caplog.at_level("INFO", "xtremes_jax"):
        startup.first_step(report, SimpleNamespace(programs={1: None}, announced=3, cached=1))
    results = startup.results()
    assert results["train_start_seconds"] == pytest.approx(7, abs=0.5)
    assert results["train_start_imports_seconds"] == pytest.approx(7, abs=0.5)
    assert results["train_start_first_batch_seconds"] == 0.25 and results["train_start_first_program_seconds"] == 0.5
    assert "imports 7.0 s, data 0.0 s, first batch 0.2 s, first program 0.5 s" in caplog.text
    assert "1 of 3 programs are ready, 1 of them from the cache" in caplog.text


def test_a_process_knows_when_it_began():
    assert time.time() - 3600 * 24 < process_begun() <= time.time()
