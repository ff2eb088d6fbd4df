"""What runs send to the hub, as they go on and at their end: the real client, against a small hub on this machine."""

import dataclasses
import json
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from corpora import write_corpus
from etils import epath
from huggingface_hub import ModelCard, parse_eval_result_entries
from local_hub import LARGE_FILES_BY_HTTP, OWNER, PREPROCESSOR, TINY, TOKEN, running_hub
from runs import flags, parameters
from several import train_together

from xtremes_jax import evaluate, hub, publishing, train
from xtremes_jax.arguments import TrainingArguments
from xtremes_jax.errors import InputError
from xtremes_jax.publishing import Uploads
from xtremes_jax.training.checkpoint import Checkpoints
from xtremes_jax.training.sealing import seal
from xtremes_jax.upload import Patience

pytestmark = LARGE_FILES_BY_HTTP
NAME = f"{OWNER}/model"
HUB = {"push_to_hub": True, "hub_model_id": NAME, "hub_token": TOKEN}


@pytest.fixture
def server(monkeypatch):
    quick = Patience(tries=2, first=0.01, longest=5.0)
    monkeypatch.setattr(publishing, "AT_START", quick)
    monkeypatch.setattr(publishing, "LATER", quick)
    with running_hub(monkeypatch) as hub_server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub_server.endpoint)
        template = f"{hub_server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub_server


# --- the queue -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, rng) -> Path:
    """A run's directory, with a model."""
    write_model(tmp_path / "run", rng, "# end\n")
    return tmp_path / "run"


def write_model(place: Path, rng, card: str) -> None:
    hub.export(
        place, tensors={"classifier.weight": rng.standard_normal((2, 3), np.float32)}, config=TINY, tokenizer=None,
        preprocessor=PREPROCESSOR, id2label={0: "x", 1: "y"}, model_card=card,
    )  # fmt: skip


def uploads_of(folder: Path, **changes) -> Uploads:
    training = TrainingArguments(do_train=True, hub_model_id=NAME, hub_token=TOKEN, push_to_hub=True)
    uploads = Uploads(dataclasses.replace(training, **changes), folder, lambda: None)
    uploads.open()
    return uploads


def offer(uploads: Uploads, step: int, rng, checkpoints=None) -> None:
    uploads.offer(step, lambda place: write_model(place, rng, f"# step {step}\n"), checkpoints)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def summaries(server) -> list[str]:
    return [message.splitlines()[0] for message in server.messages]


@pytest.mark.parametrize("always", [False, True])
def test_while_one_is_under_way_the_newest_waits(server, folder, rng, caplog, always):
    caplog.set_level(logging.INFO)
    arrived, gate = threading.Event(), threading.Event()
    server.before_commit = lambda: (arrived.set(), gate.wait(60))
    uploads = uploads_of(folder, hub_always_push=always)
    offer(uploads, 1, rng)
    assert arrived.wait(60)
    begun = time.monotonic()
    for step in (2, 3, 4):
        offer(uploads, step, rng)
    assert time.monotonic() - begun < 1  # nobody waits for the hub
    wait_until(lambda: uploads._newest.step == 4)
    assert len(list(folder.glob(".export-*"))) == (4 if always else 2)  # what is passed over takes no room
    gate.set()
    uploads.finish("The end")
    steps = [1, 2, 3, 4] if always else [1, 4]
    assert summaries(server) == [*(f"Training in progress, step {step}" for step in steps), "The end"]
    assert [files["README.md"] for files in server.history[:-1]] == [f"# step {step}\n".encode() for step in steps]
    assert server.repositories[NAME]["README.md"] == b"# end\n"
    passed = 0 if always else 2
    assert (
        f"Models of checkpoints: {len(steps)} uploaded, {passed} passed over for a newer one, 0 failed" in caplog.text
    )
    assert not list(folder.glob(".export-*"))
    uploads.close()
    assert "broken off" not in caplog.text


def test_what_fails_is_counted_and_told(server, folder, rng, caplog):
    uploads = uploads_of(folder)

    def full(place):
        raise OSError(28, "No space left on device")

    uploads.offer(1, full, None)
    wait_until(lambda: len(uploads._failed) == 1)
    server.refuse["/commit"] = (403, "")
    offer(uploads, 2, rng)
    wait_until(lambda: len(uploads._failed) == 2)
    assert "The model of step 2 was not uploaded, and the run goes on: The hub does not let the token" in caplog.text
    caplog.set_level(logging.INFO)
    uploads.finish("The end")
    assert "0 uploaded, 0 passed over for a newer one, 2 failed; step 1: [Errno 28] No space" in caplog.text
    assert "NOT uploaded to someone/model: The hub does not let the token write" in caplog.text
    assert TOKEN not in caplog.text and not list(folder.glob(".export-*"))
    uploads.close()


def test_a_run_that_ends_waits_for_nothing(server, folder, rng, caplog):
    gate = threading.Event()
    server.before_commit = lambda: gate.wait(60)
    uploads = uploads_of(folder)
    offer(uploads, 1, rng)
    wait_until(lambda: any("/commit" in path for _, path in server.requests))
    uploads.close()
    assert "The upload to someone/model that was under way is broken off" in caplog.text
    assert not list(folder.glob(".export-*"))
    gate.set()
    uploads._sender.shutdown()


class Slow(Checkpoints):
    """One checkpoint, which is complete at the third look."""

    def __init__(self, directory: Path):
        self.directory, self.asked = directory, 0
        for item in ("state", "progress"):
            (directory / "5" / item / "d").mkdir(parents=True)
            (directory / "5" / item / "d" / "data").write_bytes(b"weights")
            seal(epath.Path(directory / "5" / item))

    def is_complete(self, step):
        self.asked += 1
        return self.asked == 3


def test_a_checkpoint_is_waited_for_and_linked(server, folder, rng):
    """It is on its way to the disk when its model is offered, and removed from there when it has been taken."""
    where = Slow(folder / "checkpoints")
    uploads = uploads_of(folder, hub_strategy="checkpoint")
    gate = threading.Event()
    server.before_commit = lambda: gate.wait(60)
    offer(uploads, 5, rng, where)
    wait_until(lambda: uploads._newest is not None)
    assert where.asked == 3
    (where.directory / "5" / "state" / "d" / "data").unlink()
    gate.set()
    uploads.finish("The end")
    assert server.repositories[NAME]["last-checkpoint/5/state/d/data"] == b"weights"
    uploads.close()


def test_a_checkpoint_that_is_removed_while_it_is_taken_is_not_uploaded(server, folder, rng, caplog):
    where = Slow(folder / "checkpoints")
    where.asked = 2
    (where.directory / "5" / "state" / "d" / "data").unlink()  # after it was found complete
    uploads = uploads_of(folder, hub_strategy="checkpoint")
    offer(uploads, 5, rng, where)
    uploads.finish("The end")
    assert "its checkpoint was removed while it was taken: state/d/data is missing" in caplog.text
    assert summaries(server) == ["The end"] and not list(folder.glob(".export-*"))
    uploads.close()


def test_a_damaged_checkpoint_is_not_waited_for_at_the_end(server, folder, rng, caplog):
    where = Slow(folder / "checkpoints")
    where.is_complete = lambda step: False
    uploads = uploads_of(folder, hub_strategy="checkpoint")
    offer(uploads, 5, rng, where)
    uploads.finish("The end")
    assert "the checkpoint of step 5 is damaged" in caplog.text and summaries(server) == ["The end"]
    uploads.close()


def test_there_must_be_something_to_upload(server, tmp_path):
    with pytest.raises(InputError, match="holds no exported model, and without --do_train there will be none"):
        uploads_of(tmp_path, do_train=False)


# --- whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=12, other=4)


def command(corpus: Path, output: Path, **changes) -> list[str]:
    values = HUB | {"max_buckets": 1, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2} | changes
    return flags(corpus, output, "mls.all", **values)


def test_a_run_is_uploaded_as_it_goes_on_and_scored_from_the_hub(server, corpus, tmp_path):
    output = tmp_path / "run"
    assert train.main(command(corpus, output, hub_always_push=True, do_predict=True)) == 0
    assert summaries(server) == [
        "Training in progress, step 2", "Training in progress, step 4", "Fine-tuned on mls.all with xtremes_jax",
    ]  # fmt: skip
    of_step_2, of_step_4, finished = server.history
    model = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json"}
    model |= {"tokenizer_config.json", "vocab.json", "added_tokens.json", ".gitattributes", ".eval_results/mls.yaml"}
    assert set(of_step_2) == set(of_step_4) == model
    results = {f"{name}_results.json" for name in ("all", "train", "eval", "predict")}
    assert set(finished) == model | results
    assert of_step_2["model.safetensors"] != of_step_4["model.safetensors"] == finished["model.safetensors"]
    assert (output / "model.safetensors").read_bytes() == finished["model.safetensors"]

    card, metrics = of_step_2["README.md"].decode(), json.loads((output / "all_results.json").read_text())
    assert "this is the model after step 2 of 4" in card and "| 2 | 0.67 |" in card and "| 4 | 1.33 |" not in card
    assert "On the `validation` split" in card and ModelCard(card).data.eval_results[0].dataset_split == "validation"
    card = finished["README.md"].decode()
    assert "in progress" not in card and "| 2 | 0.67 |" in card and "| 4 | 1.33 |" in card
    assert str(tmp_path) not in card and str(corpus) not in card and TOKEN not in card
    entries = parse_eval_result_entries(yaml.safe_load(finished[".eval_results/mls.yaml"]))
    values = {entry.task_id: entry.value for entry in entries}
    assert values["mls.all_wer"] == pytest.approx(metrics["predict_wer"], abs=1e-6)
    assert values["mls.de_cer"] == pytest.approx(metrics["predict_cer_de"], abs=1e-6)

    only_training = dict.fromkeys(
        "config_name do_train do_eval freeze_feature_encoder per_device_train_batch_size max_steps learning_rate "
        "logging_steps group_by_length".split()
    )
    scored = tmp_path / "scored"
    arguments = flags(corpus, scored, None, **only_training, model_name_or_path=NAME, task="mls", hub_token=TOKEN)
    assert evaluate.main(arguments) == 0
    again = json.loads((scored / "results.json").read_text())
    assert again["wer"] == metrics["predict_wer"] and again["cer"] == metrics["predict_cer"]
    assert (scored / "predictions.jsonl").read_text() == (output / "predictions.jsonl").read_text()


def downloaded(server, prefix: str, place: Path) -> Path:
    """The files of a folder of the repository."""
    for name, data in server.repositories[NAME].items():
        if name.startswith(f"{prefix}/"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
    return place / prefix


def test_a_run_goes_on_from_the_checkpoint_on_the_hub(server, corpus, tmp_path):
    first, options = tmp_path / "first", dict(lr_scheduler_type="constant", hub_strategy="checkpoint")
    assert train.main(command(corpus, first, **options, hub_private_repo=True)) == 0
    assert server.private[NAME] == "private"
    steps = {name.split("/")[1] for name in server.repositories[NAME] if name.startswith("last-checkpoint/")}
    assert steps == {"4"}
    last = downloaded(server, "last-checkpoint", tmp_path)
    options |= {"push_to_hub": None, "hub_model_id": None, "hub_strategy": None, "max_steps": 6}
    assert train.main(command(corpus, tmp_path / "second", resume_from_checkpoint=last, **options)) == 0
    assert train.main(command(corpus, first, **options)) == 0
    here, there = parameters(first), parameters(tmp_path / "second")
    assert all(np.array_equal(here[name], there[name]) for name in here)


def test_all_checkpoints_stay_on_the_hub(server, corpus, tmp_path):
    output = tmp_path / "run"
    options = dict(hub_strategy="all_checkpoints", save_total_limit=1, hub_private_repo=False, eval_strategy="no")
    assert train.main(command(corpus, output, **options)) == 0
    kept = {name.split("/")[1] for name in server.repositories[NAME] if name.startswith("checkpoints/")}
    assert kept == {"2", "4"} and server.private[NAME] == "public"
    assert [path.name for path in (output / "checkpoints").iterdir() if path.name.isdigit()] == ["4"]
    where, step = Checkpoints.at(downloaded(server, "checkpoints", tmp_path / "again").parent)
    assert step == 4 and where.damage(2) is None is where.damage(4)
    where.close()


def test_only_the_end_is_uploaded(server, corpus, tmp_path, capsys):
    """With a hub that is busy at the start, at which only a warning is due."""
    server.passing = [("/create", 503, {})] * 3
    assert train.main(command(corpus, tmp_path / "run", hub_strategy="end")) == 0
    assert summaries(server) == ["Fine-tuned on mls.all with xtremes_jax"] and server.private[NAME] is None
    assert "--push_to_hub: someone/model: it answered 503. The run begins without knowing" in capsys.readouterr().err


def test_preparing_data_makes_no_repository(server, corpus, tmp_path):
    assert train.main(command(corpus, tmp_path / "run", preprocessing_only=True)) == 0
    assert not server.requests


def test_a_token_without_the_right_stops_the_run_before_it_begins(server, corpus, tmp_path, capsys):
    server.role = "read"
    assert train.main(command(corpus, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "error: The hub does not let the token write to someone/model (403)." in said and TOKEN not in said
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / ".lock").exists()


def test_a_hub_that_is_gone_at_the_end_fails_no_run(server, corpus, tmp_path, capsys):
    """The message says what uploads it later; that command does."""
    output = tmp_path / "a run"
    server.refuse["/preupload"] = (400, "")
    assert train.main(command(corpus, output, save_strategy="no", hub_private_repo=True)) == 0
    assert "config.json" not in server.repositories[NAME]
    said = capsys.readouterr().err
    (line,) = [text for text in said.splitlines() if text.strip().startswith("hf upload")]
    assert "NOT uploaded to someone/model: Nothing could be uploaded to someone/model: it answered 400" in said
    del server.refuse["/preupload"]
    program = "from huggingface_hub.cli.hf import main; main()"
    environment = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    words = [sys.executable, "-c", program, *shlex.split(line)[1:]]
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sent = server.repositories[NAME]
    assert sent.keys() - {".gitattributes"} == set(hub.files_to_push(output)) and "skipped.jsonl" not in sent
    assert sent["model.safetensors"] == (output / "model.safetensors").read_bytes()


def test_of_several_processes_one_uploads(server, corpus, tmp_path, monkeypatch):
    for name, value in {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}.items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "run"
    options = dict(hub_always_push=True, fsdp_devices=2, per_device_train_batch_size=2, save_steps=1, max_steps=2)
    ended = train_together(2, command(corpus, output, eval_strategy="no", **options), devices=1).wait()
    assert [one.status for one in ended] == [0, 0], ended[0].output[-3000:]
    assert summaries(server) == [
        "Training in progress, step 1", "Training in progress, step 2", "Fine-tuned on mls.all with xtremes_jax",
    ]  # fmt: skip
    assert len([path for _, path in server.requests if path == "/api/repos/create"]) == 1
    assert server.history[1]["model.safetensors"] == (output / "model.safetensors").read_bytes()
