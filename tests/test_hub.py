"""From a run to a repository and back: resolving, reading, exporting and pushing, against a small local hub."""

import base64
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from xtremes_jax import hub
from xtremes_jax.errors import InputError
from xtremes_jax.models.weights import read_tensors

TOKEN = "hf_" + "NotARealToken0123456789abcdefghij"
OWNER = "someone"
PREPROCESSOR = {"do_normalize": True, "return_attention_mask": True, "sampling_rate": 16_000}
VOCABULARY = {"a": 0, "b": 1, "ß": 2, "|": 3, "[UNK]": 4, "[PAD]": 5}
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 12,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def make_tokenizer(directory: Path, **special):
    from transformers import Wav2Vec2CTCTokenizer

    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "vocab.json", VOCABULARY)
    return Wav2Vec2CTCTokenizer(
        str(directory / "vocab.json"), unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="|", **special
    )


# --- a hub on this machine -----------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """The endpoints that `snapshot_download`, `create_repo` and `upload_folder` call, over repositories in memory."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, object] = {}
        self.objects: dict[str, bytes] = {}
        self.downloads: list[str] = []
        self.authorizations: set[str | None] = set()
        self.messages: list[str] = []
        self.refuse: dict[str, tuple[int, str]] = {}  # part of an address -> status, X-Error-Code
        self.large = (".safetensors",)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, repo_id: str) -> str:
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.repositories[repo_id].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def reply(self, content: object, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_request(self) -> None:
        body = self.read_body()
        path = unquote(urlsplit(self.path).path)
        self.server.authorizations.add(self.headers.get("Authorization"))
        for part, (status, code) in self.server.refuse.items():
            if part in path:
                return self.reply({"error": "no"}, status, X_Error_Code=code)
        if path.startswith("/lfs/"):
            self.server.objects[path.removeprefix("/lfs/")] = body
            return self.reply({})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if path.endswith("/objects/batch"):
            return self.large_files(json.loads(body)["objects"])
        if path.startswith("/api/models/"):
            owner, name, action, *_ = [*path.removeprefix("/api/models/").split("/"), "revision"]
            repo_id = f"{owner}/{name}"
            if repo_id not in self.server.repositories:
                return self.reply({"error": "no"}, 404, X_Error_Code="RepoNotFound")
            return getattr(self, f"api_{action}")(repo_id, body)
        repo_id, _, rest = path[1:].partition("/resolve/")
        return self.file(repo_id, rest.partition("/")[2])

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self, request: dict) -> None:
        repo_id = f"{request.get('organization') or OWNER}/{request['name']}"
        existed = repo_id in self.server.repositories
        self.server.repositories.setdefault(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server.private.setdefault(repo_id, request.get("visibility", request.get("private")))
        self.reply({"url": f"{self.server.endpoint}/{repo_id}", "id": repo_id}, 409 if existed else 200)

    def large_files(self, objects: list[dict]) -> None:
        actions = [
            {**item, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{item['oid']}"}}} for item in objects
        ]
        self.reply({"transfer": "basic", "objects": actions})

    def api_revision(self, repo_id: str, body: bytes) -> None:
        self.reply({"id": repo_id, "sha": self.server.sha(repo_id), "siblings": [], "tags": [], "private": False})

    def api_tree(self, repo_id: str, body: bytes) -> None:
        files = self.server.repositories[repo_id].items()
        self.reply([{"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for p, d in files])

    def api_preupload(self, repo_id: str, body: bytes) -> None:
        files = [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["path"].endswith(self.server.large) else "regular",
                "shouldIgnore": False,
            }
            for item in json.loads(body)["files"]
        ]
        self.reply({"files": files})

    def api_commit(self, repo_id: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                self.server.repositories[repo_id][value["path"]] = base64.b64decode(value["content"])
            else:
                self.server.repositories[repo_id][value["path"]] = self.server.objects[value["oid"]]
        sha = self.server.sha(repo_id)
        self.reply({"commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{sha}", "commitOid": sha})

    def file(self, repo_id: str, path: str) -> None:
        data = self.server.repositories[repo_id].get(path)
        if data is None:
            return self.reply({"error": "no"}, 404, X_Error_Code="EntryNotFound")
        if self.command == "GET":
            self.server.downloads.append(path)
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.reply(data, X_Repo_Commit=self.server.sha(repo_id), ETag=etag)


@pytest.fixture
def server(monkeypatch) -> Iterator[Hub]:
    # Tests run offline; this one hub is on this machine. The Xet protocol has no server that could run here.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with Hub() as hub_server:
        thread = threading.Thread(target=hub_server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield hub_server
        close_session()
        hub_server.shutdown()
        thread.join()


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
    assert hub.read_preprocessor(tmp_path) == {**PREPROCESSOR, "return_attention_mask": False}
    write_json(tmp_path / "preprocessor_config.json", {"do_normalize": False, "feature_size": 1})
    assert hub.read_preprocessor(tmp_path) == {
        "do_normalize": False,
        "return_attention_mask": False,
        "sampling_rate": 16_000,
    }
    write_json(tmp_path / "processor_config.json", {"processor_class": "Wav2Vec2Processor"})
    assert hub.read_preprocessor(tmp_path)["do_normalize"] is False
    write_json(tmp_path / "processor_config.json", {"feature_extractor": PREPROCESSOR})
    assert hub.read_preprocessor(tmp_path) == PREPROCESSOR


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling_rate": 8000}, "8000 Hz; only 16000 Hz"),
        ({"do_normalize": "yes"}, "do_normalize must be true or false, not 'yes'"),
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor"}, "asks for a SeamlessM4TFeatureExtractor"),
    ],
)
def test_preprocessors_that_cannot_be_honoured(tmp_path, settings, message):
    write_json(tmp_path / "preprocessor_config.json", settings)
    with pytest.raises(InputError, match=message):
        hub.read_preprocessor(tmp_path)


def test_tokenizers_that_cannot_be_used(tmp_path):
    assert hub.load_tokenizer(tmp_path) is None
    (tmp_path / "vocab.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        hub.load_tokenizer(tmp_path)
    write_json(tmp_path / "vocab.json", VOCABULARY)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    with pytest.raises(InputError, match="holds a GPT2Tokenizer"):
        hub.load_tokenizer(tmp_path)


@pytest.mark.parametrize("special", [{}, {"bos_token": None, "eos_token": None}, {"do_lower_case": True}])
def test_tokenizer_survives_the_export(tmp_path, special, rng):
    tokenizer = make_tokenizer(tmp_path / "made", **special)
    weights = {"lm_head.weight": rng.standard_normal((len(tokenizer), 4), np.float32)}
    hub.export(
        tmp_path / "out",
        tensors=weights,
        config=TINY,
        tokenizer=tokenizer,
        preprocessor=PREPROCESSOR,
        id2label=None,
        model_card="# card\n",
    )
    again = hub.load_tokenizer(tmp_path / "out")
    assert type(again) is type(tokenizer) and len(again) == len(tokenizer)
    assert again.get_vocab() == tokenizer.get_vocab() and again.pad_token_id == 5
    for text in ("ab ß", "abba  b", "a?b", ""):
        assert again(text).input_ids == tokenizer(text).input_ids
    ids = rng.integers(0, len(tokenizer), 50)
    assert again.decode(ids) == tokenizer.decode(ids)
    assert hub.read_preprocessor(tmp_path / "out") == PREPROCESSOR
    config = hub.read_config(tmp_path / "out")
    assert (config["vocab_size"], config["pad_token_id"]) == (len(tokenizer), 5)


# --- export --------------------------------------------------------------------------------------------------------


def test_export_checks_the_head(tmp_path, rng):
    common = {"config": TINY, "preprocessor": PREPROCESSOR, "model_card": ""}
    tensors = {"classifier.weight": rng.standard_normal((3, 4), np.float32)}
    with pytest.raises(ValueError, match="classifier.weight has 3 rows for 2 tokens or labels"):
        hub.export(tmp_path, tensors=tensors, tokenizer=None, id2label={0: "x", 1: "y"}, **common)
    with pytest.raises(ValueError, match="must name the classes 0 to N - 1"):
        hub.export(tmp_path, tensors=tensors, tokenizer=None, id2label={1: "x", 2: "y", 3: "z"}, **common)
    with pytest.raises(ValueError, match="lm_head.weight has no rows"):
        hub.export(tmp_path, tensors=tensors, tokenizer=make_tokenizer(tmp_path / "t"), id2label=None, **common)
    assert not list(tmp_path.glob("*.json")) and not list(tmp_path.glob(".export-*"))


def test_export_replaces_an_earlier_one(tmp_path, rng):
    common = {"config": TINY, "preprocessor": PREPROCESSOR, "model_card": "new\n"}
    tokenizer = make_tokenizer(tmp_path / "made")
    head = rng.standard_normal((len(tokenizer), 4), np.float32)
    out = tmp_path / "out"
    hub.export(out, tensors={"lm_head.weight": head}, tokenizer=tokenizer, id2label=None, **common)
    (out / "metrics.jsonl").write_text("kept")
    hub.export(out, tensors={"classifier.weight": head[:2]}, tokenizer=None, id2label={0: "x", 1: "y"}, **common)
    names = ["README.md", "config.json", "metrics.jsonl", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert hub.load_tokenizer(out) is None and list(read_tensors(out)) == ["classifier.weight"]


def test_export_needs_no_torch(tmp_path):
    program = """
import sys
sys.modules["torch"] = None
from pathlib import Path
import numpy as np
from transformers import AutoFeatureExtractor, AutoProcessor, Wav2Vec2CTCTokenizer
from xtremes_jax import hub
out = Path(sys.argv[1])
(out / "vocab.json").write_text('{"a": 0, "|": 1, "[UNK]": 2, "[PAD]": 3}')
names = dict(unk_token="[UNK]", pad_token="[PAD]", bos_token=None, eos_token=None)
tokenizer = Wav2Vec2CTCTokenizer(str(out / "vocab.json"), **names)
settings = dict(config={"model_type": "wav2vec2"}, preprocessor=hub.read_preprocessor(out), model_card="")
weights = np.ones((4, 2), np.float32)
hub.export(out / "ctc", tensors={"lm_head.weight": weights}, tokenizer=tokenizer, id2label=None, **settings)
labels = dict(enumerate("wxyz"))
hub.export(out / "classes", tensors={"classifier.weight": weights}, tokenizer=None, id2label=labels, **settings)
assert hub.load_tokenizer(out / "ctc")("a a").input_ids == [0, 1, 0]
assert type(AutoProcessor.from_pretrained(out / "ctc")).__name__ == "Wav2Vec2Processor"
print(type(AutoFeatureExtractor.from_pretrained(out / "classes")).__name__)
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Wav2Vec2FeatureExtractor"]


def numpy_state(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def test_transformers_recognises_with_an_exported_model(tmp_path, rng):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCTC, AutoProcessor, Wav2Vec2Config, Wav2Vec2ForCTC, pipeline

    tokenizer = make_tokenizer(tmp_path / "made")
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**TINY, vocab_size=len(tokenizer), pad_token_id=5)).eval()
    out = tmp_path / "out"
    hub.export(
        out,
        tensors=numpy_state(model),
        config=TINY,
        tokenizer=tokenizer,
        preprocessor=PREPROCESSOR,
        id2label=None,
        model_card="# card\n",
    )
    audio = [rng.standard_normal(length, np.float32) for length in (3000, 2500)]
    inputs = AutoProcessor.from_pretrained(out)(audio, sampling_rate=16_000, return_tensors="pt", padding=True)
    assert inputs["attention_mask"].sum(-1).tolist() == [3000, 2500]
    again, report = AutoModelForCTC.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(again(**inputs).logits, expected, rtol=0, atol=1e-6)
        first = model(**AutoProcessor.from_pretrained(out)(audio[0], sampling_rate=16_000, return_tensors="pt")).logits
    text = pipeline("automatic-speech-recognition", model=str(out))({"raw": audio[0], "sampling_rate": 16_000})["text"]
    assert text == tokenizer.decode(first[0].argmax(-1)) and text


def test_transformers_classifies_with_an_exported_model(tmp_path, rng):
    torch = pytest.importorskip("torch")
    from transformers import (
        AutoModelForAudioClassification,
        Wav2Vec2Config,
        Wav2Vec2ForSequenceClassification,
        pipeline,
    )

    labels = {0: "pay_bill", 1: "freeze", 2: "abroad"}
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**TINY, num_labels=3)).eval()
    hub.export(
        tmp_path,
        tensors=numpy_state(model),
        config=TINY,
        tokenizer=None,
        preprocessor=PREPROCESSOR,
        id2label=labels,
        model_card="# card\n",
    )
    again, report = AutoModelForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert again.config.id2label == labels and again.config.label2id["abroad"] == 2
    audio = rng.standard_normal(3000, np.float32)
    results = pipeline("audio-classification", model=str(tmp_path))({"raw": audio, "sampling_rate": 16_000})
    normal = torch.from_numpy((audio - audio.mean()) / np.sqrt(audio.var() + 1e-7))[None]
    with torch.no_grad():
        probabilities = model(normal).logits.softmax(-1)[0]
    found = {result["label"]: result["score"] for result in results}
    for index, label in labels.items():
        assert found[label] == pytest.approx(float(probabilities[index]), abs=1e-5)


# --- push ----------------------------------------------------------------------------------------------------------


# The client's own call of its HTTP library.
LARGE_FILES_BY_HTTP = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


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
    for name in ("checkpoints/4/state/data", "checkpoints/latest.json", ".model.safetensors.1.tmp", ".export-1/x.json"):
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
