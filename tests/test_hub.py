"""From a repository to a run and back: finding, reading and pushing models, against a small hub on this machine."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from local_hub import OWNER, PREPROCESSOR, TINY, TOKEN, VOCABULARY, running_hub, write_json

from xtremes_jax import hub
from xtremes_jax.errors import InputError
from xtremes_jax.feature_extractors import read_preprocessor
from xtremes_jax.models.weights import read_tensors


@pytest.fixture
def server(monkeypatch):
    with running_hub(monkeypatch) as hub_server:
        yield hub_server


# --- finding a model -----------------------------------------------------------------------------------------------


def test_a_local_directory_is_used_as_it_is(tmp_path):
    with pytest.raises(InputError, match="not a model directory: it has no config.json"):
        hub.resolve_model(tmp_path)
    assert hub.resolve_model(tmp_path, weights=False) == tmp_path
    write_json(tmp_path / "config.json", {})
    assert hub.resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="is a file. Give the directory"):
        hub.resolve_model(tmp_path / "config.json")


@pytest.mark.parametrize("path", ["/absent/model", "./absent", "../absent", "~/absent", "runs/mls/absent", "runs\\mls"])
def test_an_absent_path_is_not_taken_for_a_hub_id(path):
    with pytest.raises(InputError, match="does not exist"):
        hub.resolve_model(path)


def test_offline(tmp_path):
    with pytest.raises(InputError, match="someone/absent is not a directory here, and the hub cannot be reached"):
        hub.resolve_model("someone/absent", cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["model@2", "some one/model"])
def test_an_impossible_name(name):
    with pytest.raises(InputError, match="nor a valid name on the hub"):
        hub.resolve_model(name)


# The cache stores equal contents once, so all differ.
FILES = {
    name: b"content of " + name.encode()
    for name in (
        "config.json",
        "vocab.json",
        "README.md",
        "evil.py",
        "tf_model.h5",
        "pytorch_model.bin",
        "training_args.bin",
        "checkpoint-1/config.json",
    )
}


def test_pickled_weights_are_downloaded_when_there_are_no_others(server, tmp_path):
    server.repositories["someone/old"] = FILES
    options = {"cache_dir": tmp_path, "token": TOKEN, "endpoint": server.endpoint}
    directory = hub.resolve_model("someone/old", **options)
    assert sorted(server.downloads) == ["config.json", "pytorch_model.bin", "vocab.json"]
    assert (directory / "pytorch_model.bin").read_bytes() == FILES["pytorch_model.bin"]
    assert server.authorizations == {f"Bearer {TOKEN}"}
    # The second time nothing is downloaded, and none of it needs the hub.
    server.refuse[""] = (503, "")
    assert hub.resolve_model("someone/old", **options) == directory
    assert len(server.downloads) == 3


@pytest.mark.parametrize(
    "weights",
    [
        ["model.safetensors"],
        ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    ],
)
def test_only_safetensors_are_downloaded_when_there_are_any(server, tmp_path, weights):
    server.repositories["someone/new"] = FILES | {name: name.encode() for name in weights}
    hub.resolve_model("someone/new", cache_dir=tmp_path, endpoint=server.endpoint)
    assert sorted(server.downloads) == sorted(["config.json", "vocab.json", *weights])


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_needs_no_configuration_and_no_weights_of_a_whole_model(server, tmp_path, weights):
    held = {name: FILES[name] for name in ("vocab.json", "README.md", "evil.py")}
    server.repositories["someone/adapter"] = held | {"adapter_config.json": b"{}", weights: b"factors"}
    options = {"cache_dir": tmp_path, "endpoint": server.endpoint}
    directory = hub.resolve_model("someone/adapter", **options)
    assert sorted(server.downloads) == sorted(["adapter_config.json", "vocab.json", weights])
    assert hub.resolve_model(directory) == directory


def test_small_files_alone(server, tmp_path):
    server.repositories["someone/old"] = FILES
    hub.resolve_model("someone/old", cache_dir=tmp_path, weights=False, endpoint=server.endpoint)
    assert sorted(server.downloads) == ["config.json", "vocab.json"]


@pytest.mark.parametrize("absent", ["config.json", "pytorch_model.bin"])
def test_repositories_of_something_else(server, tmp_path, absent):
    server.repositories["someone/odd"] = {name: data for name, data in FILES.items() if name != absent}
    with pytest.raises(InputError, match="no config.json" if absent == "config.json" else "has no weights"):
        hub.resolve_model("someone/odd", cache_dir=tmp_path, endpoint=server.endpoint)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "someone/secret was not found on the hub, nor is it a directory here"),
        (401, "RepoNotFound", "someone/secret was not found on the hub, nor is it a directory here"),
        (401, "", "answered 401 for someone/secret: the token given may be invalid"),
        (403, "GatedRepo", "is gated: accept its terms"),
        (404, "RevisionNotFound", "not in the revision asked for"),
        (500, "", "the hub cannot be reached"),
    ],
)
def test_refusals_are_explained_without_the_token(server, tmp_path, status, code, message):
    server.refuse["someone/secret"] = (status, code)
    with pytest.raises(InputError, match=message) as caught:
        hub.resolve_model("someone/secret", cache_dir=tmp_path, token=TOKEN, endpoint=server.endpoint)
    assert TOKEN not in str(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize("token", ["", TOKEN + "\n", f"{TOKEN} {TOKEN}", TOKEN + "é", "\0"])
def test_unfit_tokens_are_not_echoed(tmp_path, token):
    with pytest.raises(InputError, match="Copy it again") as caught:
        hub.resolve_model("someone/model", cache_dir=tmp_path, token=token)
    assert TOKEN not in str(caught.value)


# --- reading a model directory -------------------------------------------------------------------------------------


def test_read_config(tmp_path):
    with pytest.raises(InputError, match="config.json cannot be read"):
        hub.read_config(tmp_path)
    write_json(tmp_path / "config.json", TINY)
    assert hub.read_config(tmp_path) == TINY


def test_preprocessor_from_either_file(tmp_path):
    assert read_preprocessor(tmp_path, TINY) == {**PREPROCESSOR, "return_attention_mask": False}
    write_json(tmp_path / "preprocessor_config.json", {"do_normalize": False, "feature_size": 1})
    assert read_preprocessor(tmp_path, TINY) == {
        "do_normalize": False,
        "return_attention_mask": False,
        "sampling_rate": 16_000,
    }
    write_json(tmp_path / "processor_config.json", {"processor_class": "Wav2Vec2Processor"})
    assert read_preprocessor(tmp_path, TINY)["do_normalize"] is False
    write_json(tmp_path / "processor_config.json", {"feature_extractor": PREPROCESSOR})
    assert read_preprocessor(tmp_path, TINY) == PREPROCESSOR


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling_rate": 8000}, "8000 Hz; only 16000 Hz"),
        ({"do_normalize": "yes"}, "do_normalize must be true or false, not 'yes'"),
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor"}, "asks for 'SeamlessM4TFeatureExtractor'"),
    ],
)
def test_preprocessors_that_cannot_be_honoured(tmp_path, settings, message):
    write_json(tmp_path / "preprocessor_config.json", settings)
    with pytest.raises(InputError, match=message):
        read_preprocessor(tmp_path, TINY)


def test_tokenizers_that_cannot_be_used(tmp_path):
    assert hub.load_tokenizer(tmp_path) is None
    (tmp_path / "vocab.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        hub.load_tokenizer(tmp_path)
    write_json(tmp_path / "vocab.json", VOCABULARY)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    with pytest.raises(InputError, match="holds 'GPT2Tokenizer'"):
        hub.load_tokenizer(tmp_path)


# --- push ----------------------------------------------------------------------------------------------------------


# The client's own call of its HTTP library.
LARGE_FILES_BY_HTTP = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


# What a run leaves beside its model: hypotheses and references, paths of clips, logs, and its state.
PRIVATE = """
    predictions.jsonl eval_predictions.jsonl skipped.jsonl metrics.jsonl results.json notes.txt pytorch_model.bin
    runs/events.out.tfevents.1 runs/config.json checkpoints/4/state/data checkpoints/latest.json
    checkpoints/4/all_results.json model-1-of-x/secret.safetensors .lock .model.safetensors.1.tmp .export-1/config.json
""".split()


def make_export(directory: Path, rng) -> None:
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


# With Xet disabled large files go the Git LFS way; with Xet the client commits in its own pipeline, here small files.
@LARGE_FILES_BY_HTTP
@pytest.mark.parametrize("xet", [False, True])
@pytest.mark.parametrize("private", [True, False, None])
def test_push_and_download_again(server, tmp_path, rng, monkeypatch, xet, private):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    server.large = () if xet else (".safetensors",)
    make_export(tmp_path / "run", rng)
    options = {"token": TOKEN, "private": private, "endpoint": server.endpoint}
    url = hub.push(tmp_path / "run", repo_id="my-model", commit_message="First results", **options)
    assert url == f"{server.endpoint}/{OWNER}/my-model/commit/{server.sha(f'{OWNER}/my-model')}"
    assert sorted(server.repositories[f"{OWNER}/my-model"]) == [
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
    pushed = read_tensors(tmp_path / "run")
    np.testing.assert_array_equal(read_tensors(fetched)["classifier.weight"], pushed["classifier.weight"])
    # Again, under its full name, into the repository that exists.
    write_json(tmp_path / "run" / "all_results.json", {"predict_wer": 0.125})
    hub.push(tmp_path / "run", repo_id=f"{OWNER}/my-model", commit_message="Better", **options)
    assert json.loads(server.repositories[f"{OWNER}/my-model"]["all_results.json"]) == {"predict_wer": 0.125}


@LARGE_FILES_BY_HTTP
@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("/create", 401, "answered 401 for someone/model: the token given may be invalid"),
        ("/create", 403, "answered 403 .* lack write access"),
        ("/commit", 403, "answered 403 .* lack write access"),
        ("/lfs/", 403, "answered 403 .* lack write access"),
    ],
)
def test_refused_pushes_are_explained_without_the_token(server, tmp_path, rng, part, status, message):
    make_export(tmp_path, rng)
    server.refuse[part] = (status, "")
    options = {"token": TOKEN, "private": None, "commit_message": "x", "endpoint": server.endpoint}
    with pytest.raises(InputError, match=message) as caught:
        hub.push(tmp_path, repo_id="someone/model", **options)
    assert TOKEN not in str(caught.value) + str(caught.value.__cause__)


def test_a_push_needs_a_hub_and_an_export(tmp_path, rng):
    options = {"repo_id": "someone/model", "token": TOKEN, "private": None, "commit_message": "x"}
    with pytest.raises(InputError, match="no exported model to push"):
        hub.push(tmp_path, **options)
    make_export(tmp_path, rng)
    with pytest.raises(InputError, match="exchange with the hub failed"):
        hub.push(tmp_path, **options)
