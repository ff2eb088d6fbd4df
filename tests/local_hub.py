"""What the tests of the hub share: a small hub on this machine, and tiny models and tokenizers to put there."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

TOKEN = "hf_" + "NotARealToken0123456789abcdefghij"
OWNER = "someone"
# The client's own call of its HTTP library.
LARGE_FILES_BY_HTTP = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
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
        self.passing: list[tuple[str, int, dict[str, str]]] = []  # the same once each: part, status, headers
        self.requests: list[tuple[float, str]] = []  # when each came, and its address
        self.role = "write"  # of any token
        self.history: list[dict[str, bytes]] = []  # contents of the repository after each commit
        self.hold = threading.Event()  # answers wait for it
        self.hold.set()
        self.before_commit = lambda: None
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
        self.server.hold.wait(60)
        path = unquote(urlsplit(self.path).path)
        self.server.authorizations.add(self.headers.get("Authorization"))
        self.server.requests.append((time.monotonic(), path))
        for one in list(self.server.passing):
            part, status, headers = one
            if part in path:
                self.server.passing.remove(one)
                return self.reply({"error": "later"}, status, **headers)
        for part, (status, code) in self.server.refuse.items():
            if part in path:
                return self.reply({"error": "no"}, status, X_Error_Code=code)
        if path.startswith("/lfs/"):
            self.server.objects[path.removeprefix("/lfs/")] = body
            return self.reply({})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/whoami-v2":
            return self.reply({"name": OWNER, "auth": {"accessToken": {"role": self.server.role}}})
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if path.endswith("/objects/batch"):
            return self.large_files(json.loads(body)["objects"])
        if path.startswith("/api/models/"):
            owner, name, action, *_ = [*path.removeprefix("/api/models/").split("/"), "revision"]
            repo_id = f"{owner}/{name}"
            if repo_id not in self.server.repositories:
                return self.reply({"error": "no"}, 404, X_Error_Code="RepoNotFound")
            return getattr(self, f"api_{action.replace('-', '_')}")(repo_id, body)
        repo_id, _, rest = path[1:].partition("/resolve/")
        return self.file(repo_id, rest.partition("/")[2])

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self, request: dict) -> None:
        if self.server.role != "write":
            return self.reply({"error": "no right to write"}, 403)
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

    def api_auth_check(self, repo_id: str, body: bytes) -> None:
        self.reply({}, 200 if self.server.role == "write" else 403)

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
        self.server.before_commit()
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                self.server.repositories[repo_id][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.server.repositories[repo_id][value["path"]]
            else:
                self.server.repositories[repo_id][value["path"]] = self.server.objects[value["oid"]]
        self.server.history.append(dict(self.server.repositories[repo_id]))
        sha = self.server.sha(repo_id)
        self.reply({"commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{sha}", "commitOid": sha})

    def file(self, repo_id: str, path: str) -> None:
        data = self.server.repositories.get(repo_id, {}).get(path)
        if data is None:
            return self.reply({"error": "no"}, 404, X_Error_Code="EntryNotFound")
        if self.command == "GET":
            self.server.downloads.append(path)
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.reply(data, X_Repo_Commit=self.server.sha(repo_id), ETag=etag)


@contextmanager
def running_hub(monkeypatch) -> Iterator[Hub]:
    """A hub that answers until the test ends; `server.endpoint` is its address."""
    # Tests run offline; this one hub is on this machine. The Xet protocol has no server that could run here.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with Hub() as hub_server:
        thread = threading.Thread(target=hub_server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub_server
        finally:  # or a test that fails would leave the thread behind, and the process with it
            close_session()
            hub_server.shutdown()
            thread.join()
