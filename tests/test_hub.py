"""From a repository to a run: finding and reading models, against a small hub on this machine."""

import pytest
from local_hub import PREPROCESSOR, TINY, TOKEN, VOCABULARY, running_hub, write_json

from xtremes_jax import hub
from xtremes_jax.errors import InputError
from xtremes_jax.feature_extractors import read_preprocessor


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
    assert read_preprocessor(tmp_path, TINY) == PREPROCESSOR  # as published models with layer norms have it
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
