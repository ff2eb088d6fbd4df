"""A run's repository on the hub: what is sent there, what is not, and how a hub that refuses or fails is met.

The real client, against a small hub on this machine.
"""

import email.utils
import json
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from local_hub import LARGE_FILES_BY_HTTP, OWNER, PREPROCESSOR, TINY, TOKEN, running_hub, write_json

from xtremes_jax import hub, upload
from xtremes_jax.errors import InputError
from xtremes_jax.models.weights import read_tensors
from xtremes_jax.upload import Patience, Repository, Unreachable

QUICK = Patience(tries=3, first=0.01, longest=5.0)
PRIVATE = """
    predictions.jsonl eval_predictions.jsonl skipped.jsonl metrics.jsonl results.json notes.txt pytorch_model.bin
    runs/events.out.tfevents.1 runs/config.json checkpoints/4/state/data checkpoints/latest.json
    checkpoints/4/all_results.json model-1-of-x/secret.safetensors .lock .model.safetensors.1.tmp .export-1/config.json
    .eval_results/notes.txt
""".split()
"""What a run leaves beside its model: hypotheses and references, paths of clips, logs, and its state."""


@pytest.fixture
def server(monkeypatch):
    with running_hub(monkeypatch) as hub_server:
        yield hub_server


@pytest.fixture
def run(tmp_path, rng) -> Path:
    """A directory with an exported model, and everything else that a run leaves."""
    directory = tmp_path / "run"
    hub.export(
        directory,
        tensors={"classifier.weight": rng.standard_normal((2, 3), np.float32)},
        config=TINY,
        tokenizer=None,
        preprocessor=PREPROCESSOR,
        id2label={0: "x", 1: "y"},
        model_card="---\ntags:\n- jax\n---\n# card\n",
    )
    write_json(directory / "all_results.json", {"predict_wer": 0.25})
    for name in PRIVATE:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("not for the hub")
    (directory / ".eval_results" / "mls.yaml").write_text("[]")
    return directory


def repository(server, name=f"{OWNER}/model", **changes) -> Repository:
    return Repository(name, **{"token": TOKEN, "private": None, "endpoint": server.endpoint} | changes)


def push(where: Repository, directory: Path, message="Results", **changes) -> str:
    return where.send(directory, message, files=hub.files_to_push(directory), **{"patience": QUICK} | changes)


# With Xet disabled large files go the Git LFS way; with Xet the client commits in its own pipeline, here small files.
@LARGE_FILES_BY_HTTP
@pytest.mark.parametrize("xet", [False, True])
@pytest.mark.parametrize("private", [True, False, None])
def test_push_and_download_again(server, run, tmp_path, monkeypatch, xet, private):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    server.large = () if xet else (".safetensors",)
    where = repository(server, "my-model", private=private)
    where.open(QUICK)
    assert where.name == f"{OWNER}/my-model"
    url = push(where, run, "First results")
    assert url == f"{server.endpoint}/{OWNER}/my-model/commit/{server.sha(f'{OWNER}/my-model')}"
    assert sorted(server.repositories[f"{OWNER}/my-model"]) == [
        ".eval_results/mls.yaml",
        ".gitattributes",
        "README.md",
        "all_results.json",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert len(server.objects) == (not xet) and server.messages[0].startswith("First results")
    assert server.private[f"{OWNER}/my-model"] == {True: "private", False: "public", None: None}[private]
    assert server.authorizations <= {f"Bearer {TOKEN}", None}
    fetched = hub.resolve_model(f"{OWNER}/my-model", cache_dir=tmp_path / "cache", endpoint=server.endpoint)
    np.testing.assert_array_equal(read_tensors(fetched)["classifier.weight"], read_tensors(run)["classifier.weight"])
    # Again, under its full name, into the repository that exists, by a process that has not asked before.
    write_json(run / "all_results.json", {"predict_wer": 0.125})
    push(repository(server, f"{OWNER}/my-model"), run, "Better")
    assert json.loads(server.repositories[f"{OWNER}/my-model"]["all_results.json"]) == {"predict_wer": 0.125}


@LARGE_FILES_BY_HTTP
def test_a_folder_is_replaced(server, tmp_path):
    for step in (1, 2):
        folder = tmp_path / str(step)
        (folder / "last" / str(step)).mkdir(parents=True)
        (folder / "last" / str(step) / "state").write_text(str(step))
        (folder / "README.md").write_text(f"# {step}\n")
        repository(server).send(
            folder, f"step {step}", files=["README.md", f"last/{step}/state"], replaces="last", patience=QUICK
        )
    files = server.repositories[f"{OWNER}/model"]
    assert sorted(files) == [".gitattributes", "README.md", "last/2/state"] and files["README.md"] == b"# 2\n"


@LARGE_FILES_BY_HTTP
@pytest.mark.parametrize("xet", [False, True])
def test_what_was_of_another_model_goes(server, run, monkeypatch, xet):
    """A sharded classifier takes the place of one that Transformers would prefer to it, and of its tokenizer."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    server.large = () if xet else (".safetensors",)
    (run / "model.safetensors").rename(run / "model-00001-of-00001.safetensors")
    write_json(run / "model.safetensors.index.json", {"weight_map": {}})
    gone = {"model.safetensors", "vocab.json", "tokenizer_config.json", "adapter_config.json", "lora/config.json"}
    kept = {".gitattributes", "LICENSE", "adapter.deu.safetensors", "checkpoints/4/state", "sub/config.json"}
    server.repositories[f"{OWNER}/model"] = dict.fromkeys(gone | kept, b"old")
    push(repository(server), run)
    held = server.repositories[f"{OWNER}/model"]
    assert held.keys() == kept | set(hub.files_to_push(run)) and held["config.json"] != b"old"


@LARGE_FILES_BY_HTTP
@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("/create", 401, r"does not know the token \(401\) that someone/model was to be written with. Copy it again"),
        (
            "/create",
            403,
            r"not let the token write .* \(403\). It is a token of the account someone with the right: read",
        ),
        (
            "/create",
            404,
            r"There is no someone/model on the hub that the token may see \(404\). .* Check --hub_model_id",
        ),
        ("/commit", 403, "Make one with the right to write at https://huggingface.co/settings/tokens, or name a"),
        ("/lfs/", 403, "does not let the token write"),
        ("/auth-check/write", 403, "does not let the token write"),
        ("/preupload", 400, r"Nothing could be uploaded to someone/model: it answered 400\. The hub says: no$"),
        ("/commit", 403, r"OWNER/NAME\. The hub says: no$"),  # as of a quota
    ],
)
def test_refusals_are_explained_at_once_and_without_the_token(server, run, part, status, message):
    server.repositories[f"{OWNER}/model"] = {}
    if part == "/create":
        del server.repositories[f"{OWNER}/model"]
        server.role = "read"
    server.refuse[part] = (status, "")
    with pytest.raises(InputError, match=message) as caught:
        push(repository(server), run)
    assert TOKEN not in str(caught.value) + str(caught.value.__cause__)
    assert len([path for _, path in server.requests if part in path]) == 1


def test_a_token_that_may_only_read_is_found_out_even_where_the_repository_is_there(server):
    server.repositories[f"{OWNER}/model"] = {}
    server.role = "read"
    with pytest.raises(InputError, match="with the right: read"):
        repository(server).open(QUICK)


def test_a_hub_that_does_not_know_the_question_may_be_written_to(server):
    server.refuse["/auth-check"] = (404, "EntryNotFound")
    repository(server).open(QUICK)


@LARGE_FILES_BY_HTTP
def test_what_passes_is_tried_again(server, run):
    server.passing = [("/create", 503, {}), ("/create", 500, {}), ("/preupload", 502, {}), ("/preupload", 429, {})]
    where = repository(server)
    where.open(QUICK)
    push(where, run)
    assert not server.passing and "config.json" in server.repositories[f"{OWNER}/model"]


def test_the_pause_that_the_hub_asks_for_is_kept(server):
    """Where the client itself does not keep it, as it does for parts of an upload."""
    pauses = []
    server.passing = [("/create", 429, {"Retry_After": "2"})]
    repository(server).open(QUICK, pauses.append)
    assert pauses == [2.0]
    at = email.utils.formatdate(time.time() + 4, usegmt=True)
    server.passing = [("/create", 429, {"Retry_After": at})]
    repository(server).open(QUICK, pauses.append)
    assert 2 < pauses[1] <= 4
    server.passing = [
        ("/create", 429, {"RateLimit": '"api";r=0;t=3', "RateLimit_Policy": '"fixed window";"api";q=9;w=3'})
    ]
    repository(server).open(QUICK, pauses.append)
    assert pauses.pop() == 4.0
    server.passing = [("/create", 429, {"Retry_After": "60"})]
    with pytest.raises(Unreachable, match="someone/model: it answered 429"):
        repository(server).open(QUICK, pauses.append)
    assert len(pauses) == 2


@LARGE_FILES_BY_HTTP
def test_the_client_keeps_it_for_parts_of_an_upload(server, run):
    server.passing = [("/commit", 429, {"Retry_After": "1"})]
    push(repository(server), run)
    first, second = (came for came, path in server.requests if "/commit" in path)
    assert second - first >= 1


def test_pauses_grow_and_end(server):
    pauses = []
    server.refuse["/create"] = (503, "")
    with pytest.raises(Unreachable, match="someone/model: it answered 503"):
        repository(server).open(Patience(4, 0.5, 10), pauses.append)
    assert pauses == [0.5, 1.0, 2.0]
    with pytest.raises(Unreachable):
        repository(server).open(Patience(4, 0.5, 10), lambda seconds: pauses.append(seconds) or True)
    assert len(pauses) == 4  # it was told that there is no use


def test_nobody_there(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(Unreachable, match="someone/model: it cannot be reached"):
        repository(server).open(QUICK)


def test_a_hub_that_never_answers_is_given_up_on(server):
    before = huggingface_hub.get_session().timeout
    server.hold.clear()
    with pytest.raises(Unreachable, match="cannot be reached"):
        repository(server).open(Patience(1, 0.01, 1, silence=0.2))
    server.hold.set()
    assert huggingface_hub.get_session().timeout == before  # what else is asked of the hub has its own


def test_a_hub_whose_machine_is_silent_is_given_up_on_soon(monkeypatch):
    """As behind a firewall that drops packets: the queue of those that would connect is full here."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(upload, "_CONNECT_SECONDS", 0.2)
    with socket.socket() as full, ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(2):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        where = repository(SimpleNamespace(endpoint=f"http://127.0.0.1:{full.getsockname()[1]}"))
        begun = time.monotonic()
        with pytest.raises(Unreachable, match="cannot be reached"):
            where.open(Patience(1, 0.01, 1))
        assert time.monotonic() - begun < 20
    close_session()


def test_offline_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable):
        Repository("someone/model", token=TOKEN, private=None).open(Patience(9, 9.0, 99.0))


def test_no_token_and_odd_ones(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="--push_to_hub needs a token of the hub, and there is none. Make one"):
        Repository("someone/model", token=None, private=None)
    with pytest.raises(InputError, match="Copy it again") as caught:
        Repository("someone/model", token=f"{TOKEN} ", private=None)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("name", ["some one/model", "a/b/c", "model--x"])
def test_impossible_names(server, name):
    with pytest.raises(InputError, match="--hub_model_id .* can be no repository"):
        repository(server, name).open(QUICK)
