"""Tokens of the hub: sent to it, and found nowhere else, in no file, log or message."""

import json
import logging
from pathlib import Path

import pytest
from corpora import write_corpus
from local_hub import OWNER, TOKEN, running_hub
from runs import flags

from xtremes_jax import InputError, train
from xtremes_jax.arguments import parse_arguments
from xtremes_jax.training.checkpoint import Checkpoints

OTHER = "hf_" + "FromTheEnvironment0123456789"


def holding(folder: Path, *secrets: str) -> list[Path]:
    """Files below a folder whose bytes or name hold one of the secrets."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(s.encode() in path.read_bytes() or s in str(path) for s in secrets)]


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
def test_a_run_leaves_no_trace_of_its_tokens(tmp_path, monkeypatch, caplog, capfd):
    """Neither when the hub refuses what it has made, nor when it takes it."""
    monkeypatch.setenv("HF_TOKEN", OTHER)
    monkeypatch.setenv("HF_DEBUG", "1")
    corpus, output = write_corpus(tmp_path / "corpus"), tmp_path / "run"
    options = dict(max_steps=2, save_steps=1, eval_strategy="steps", eval_steps=1, do_predict=True,
                   log_level="debug", report_to="tensorboard",
                   push_to_hub=True, hub_model_id=f"{OWNER}/model", hub_token=TOKEN)  # fmt: skip
    with running_hub(monkeypatch) as server, caplog.at_level(logging.DEBUG):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        server.refuse["/api/repos/create"] = (403, "")
        assert train.main(flags(corpus, output, "mls.all", **options)) == 2
        del server.refuse["/api/repos/create"]
        assert train.main(flags(corpus, output, "mls.all", **options)) == 0
    assert f"Bearer {TOKEN}" in server.authorizations
    printed = capfd.readouterr()
    for text in (caplog.text, printed.out, printed.err, *server.messages):
        assert TOKEN not in text and OTHER not in text
    for folder in (output, corpus / "cache"):
        assert not holding(folder, TOKEN, OTHER)
    assert not any(TOKEN.encode() in data for files in server.repositories.values() for data in files.values())
    # What Orbax has written may be compressed: what it reads back counts.
    checkpoints = Checkpoints(output / "checkpoints", create=False)
    kept = json.dumps([checkpoints.progress(step) for step in checkpoints.steps()])
    assert checkpoints.steps() and "hub_model_id" in kept and TOKEN not in kept and OTHER not in kept
    checkpoints.close()


@pytest.mark.parametrize(
    "argv",
    [
        ["--hub_token", TOKEN, "--push_to_hub_token", TOKEN[::-1]], ["--use_auth_token", TOKEN], [TOKEN],
        ["--hub_token=", TOKEN], [f"--hub_token{TOKEN}"], ["--hub_tokn", TOKEN], ["--task", TOKEN], ["--seed", TOKEN],
    ],
)  # fmt: skip
def test_no_message_about_the_command_line_repeats_a_token(argv):
    with pytest.raises(InputError) as caught:
        parse_arguments(argv)
    for token in (TOKEN, TOKEN[::-1]):
        assert token.lower() not in str(caught.value).lower()
    assert caught.value.__cause__ is None or TOKEN not in str(caught.value.__cause__)


def test_a_token_of_the_wrong_type_is_not_repeated(tmp_path):
    (tmp_path / "conf.json").write_text(json.dumps({"hub_token": [TOKEN]}))
    with pytest.raises(InputError, match="hub_token must be a string, not list"):
        parse_arguments([str(tmp_path / "conf.json")])
