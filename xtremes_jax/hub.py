"""Models as Hugging Face repositories: finding one, its configuration and tokenizer; writing a directory that
Transformers loads unchanged, and which of its files may leave the machine.

Tokens are passed on to the client and appear in no message, file or log.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import numpy as np
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from xtremes_jax.errors import InputError
from xtremes_jax.feature_extractors import write_processor
from xtremes_jax.models import is_of_language
from xtremes_jax.models.config import is_retrieval
from xtremes_jax.models.config_fields import shown
from xtremes_jax.models.families import FAMILIES
from xtremes_jax.models.weights import (
    ADAPTER_FILES,
    WEIGHT_FILES,
    read_json_object,
    write_safetensors,
    write_tensor_file,
)
from xtremes_jax.nested_vocabulary import nested_languages, one_language

if TYPE_CHECKING:
    from transformers import Wav2Vec2CTCTokenizer

CONFIG_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    # Of a decoder.
    "generation_config.json",
    "tokenizer.json",
    "sentencepiece.bpe.model",
)
"""Small files of a model's directory."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""Files of a low-rank adapter, as PEFT names them; of the latter the first that is there."""
ADAPTER_FOLDER = "lora"
"""Of an output directory: the low-rank adapter alone."""
_TOKENIZER_FILES = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_SAFETENSORS_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
# Nothing else of an output directory leaves the machine: predictions, clip lists and logs hold transcripts and paths.
_RESULT_FILES = ("all_results.json", "train_results.json", "eval_results.json", "predict_results.json")
_ADAPTER_ALONE = tuple(f"{ADAPTER_FOLDER}/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS[0], *CONFIG_FILES))
OF_ONE_MODEL = (*CONFIG_FILES, *_SAFETENSORS_FILES, ADAPTER_CONFIG, *ADAPTER_WEIGHTS, *_ADAPTER_ALONE)
"""Patterns of the files that are loaded together: in a repository, those that an upload does not bring are of the model
before it. Adapters of languages are not among them: a model may have many, each loaded by its name."""
EVAL_RESULTS = constants.EVAL_RESULTS_FOLDER
"""Folder of a model's scores for programs."""
_PUSHED = (
    *CONFIG_FILES, "README.md", *_SAFETENSORS_FILES, ADAPTER_FILES[0], *_RESULT_FILES, f"{EVAL_RESULTS}/*.yaml",
)  # fmt: skip
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# The client raises the errors of its HTTP library as they are; this is their common base, whichever library that is.
HTTP_ERROR = HfHubHTTPError.__bases__[0]


def resolve_model(
    path_or_id: str | Path,
    *,
    cache_dir: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    weights: bool = True,
    target_lang: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """The local directory of a model: a directory as it is, a hub id after its files have been downloaded.

    Downloaded are the configuration, tokenizer and feature extractor files, and the weights in one format: safetensors
    when the repository has any, `pytorch_model.bin` otherwise.

    Args:
        path_or_id: a directory, or the id of a model on the hub (`facebook/wav2vec2-xls-r-300m`).
        cache_dir: where downloads are kept; None means the hub client's own cache.
        revision: branch, tag or commit on the hub.
        token: for private and gated models; None means the one of `hf auth login`, if any.
        weights: False for the small files alone (a tokenizer's repository); then config.json may be absent too.
        target_lang: with the weights come the adapters of this language, if there are any.
        endpoint: address of the hub; None means `HF_ENDPOINT` or huggingface.co.

    Raises:
        InputError: neither a model directory nor a model that can be had from the hub.
    """
    local = Path(os.path.expanduser(path_or_id))
    if os.path.isdir(local):  # which, unlike Path.is_dir, raises no error where a name is too long
        if weights and not any((local / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
            raise InputError(f"{local} is not a model directory: it has no config.json.")
        return local
    name = _checked_id(str(path_or_id), local)

    def download(patterns: tuple[str, ...]) -> Path:
        options = {"revision": revision, "cache_dir": cache_dir, "token": token, "endpoint": endpoint}
        with _explained(name, token):
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), **options))

    if not weights:
        return download((*CONFIG_FILES, ADAPTER_CONFIG))
    adapters = tuple(pattern.replace("*", target_lang) for pattern in ADAPTER_FILES) if target_lang else ()
    directory = download((*CONFIG_FILES, ADAPTER_CONFIG, *_SAFETENSORS_FILES, *adapters[:1]))
    if adapters and not (directory / adapters[0]).is_file():
        directory = download((*CONFIG_FILES, *adapters))
    if (directory / ADAPTER_CONFIG).is_file():
        directory = download((*CONFIG_FILES, ADAPTER_CONFIG, ADAPTER_WEIGHTS[0]))
        is_whole = (directory / ADAPTER_WEIGHTS[0]).is_file()
        return directory if is_whole else download((*CONFIG_FILES, ADAPTER_CONFIG, ADAPTER_WEIGHTS[1]))
    if not any((directory / file).is_file() for file in WEIGHT_FILES):
        directory = download(CONFIG_FILES + _PICKLED_FILES)
    if not (directory / "config.json").is_file():
        raise InputError(f"The repository {name} is not a Transformers model: it has no config.json.")
    if not any((directory / file).is_file() for file in WEIGHT_FILES):
        raise InputError(f"The repository {name} has no weights: looked for {', '.join(WEIGHT_FILES)}.")
    return directory


def _checked_id(name: str, local: Path) -> str:
    """A name that is no directory here, if it can be one on the hub; InputError where it can only be a path."""
    if os.path.exists(local):
        raise InputError(f"{name} is a file. Give the directory that holds config.json and the weights.")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name:
        raise InputError(
            f"{name} does not exist. Give a directory that holds config.json, or the id of a model on the hub."
        )
    return name


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a model directory; InputError when it is absent, damaged or no JSON object."""
    return read_json_object(Path(directory) / "config.json")


def load_tokenizer(directory: Path, target_lang: str | None = None) -> "Wav2Vec2CTCTokenizer | None":
    """The CTC tokenizer in a model directory, from local files alone; None when there is no vocab.json.

    Args:
        directory: of the model.
        target_lang: of a vocabulary that is nested, the language: the tokenizer has its part alone. None takes the
            language that tokenizer_config.json names.

    Raises:
        InputError: the files are damaged, or of a tokenizer of another kind; or the vocabulary has no such language, or
            is nested and none is named.
    """
    directory = Path(directory)
    if not (directory / "vocab.json").is_file():
        return None
    settings = {name: read_json_object(directory / name) for name in _TOKENIZER_FILES if (directory / name).exists()}
    kind = settings.get("tokenizer_config.json", {}).get("tokenizer_class")
    if kind not in (None, "Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer"):
        raise InputError(
            f"{directory} holds {shown(kind)}; only a Wav2Vec2CTCTokenizer can be used. Leave it out to build one."
        )
    if target_lang is None and not nested_languages(directory):
        return _read_tokenizer(directory, directory)
    with one_language(directory, settings, target_lang) as folder:
        return _read_tokenizer(folder, directory)


def _read_tokenizer(folder: Path, directory: Path) -> "Wav2Vec2CTCTokenizer":
    # Here, not above: Transformers takes a second to import, and classification needs no tokenizer.
    from transformers import Wav2Vec2CTCTokenizer

    try:
        # The vocabulary is named, or versions before 5.24 take the path that tokenizer_config.json may give, wherever
        # that leads.
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(
            str(folder), vocab_file=str(folder / "vocab.json"), local_files_only=True
        )
        _check_vocabulary(tokenizer)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"The tokenizer in {directory} cannot be loaded ({error}).") from error
    return tokenizer


def _check_vocabulary(tokenizer: "Wav2Vec2CTCTokenizer") -> None:
    """ValueError unless the tokens are numbered from 0 on, and those are there that labels are made with."""
    ids = list(tokenizer.get_vocab().values())
    if not all(type(number) is int for number in ids) or sorted(ids) != list(range(len(ids))):
        raise ValueError("its tokens are not numbered from 0 on, each once")
    for name in ("unk_token", "pad_token"):
        if getattr(tokenizer, name) not in tokenizer.get_vocab():
            raise ValueError(f"its {name} {shown(getattr(tokenizer, name))} is not in its vocabulary")
    for name in ("word_delimiter_token", "replace_word_delimiter_char"):
        if not isinstance(getattr(tokenizer, name), str):
            raise ValueError(f"its {name} is {shown(getattr(tokenizer, name))}, which is no text")
    # Settings of a wrong type are found only when it is used; vocab.json may number its unknown token otherwise.
    if any(number not in ids for number in tokenizer("\ufffd a").input_ids):
        raise ValueError("it gives labels that are not in its vocabulary")


def export(
    directory: Path,
    *,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    tokenizer: "Wav2Vec2CTCTokenizer | None",
    preprocessor: Mapping[str, Any],
    id2label: Mapping[int, str] | None,
    model_card: str,
    generation: Mapping[str, Any] | None = None,
    target_lang: str | None = None,
) -> None:
    """Write a repository that Transformers loads unchanged: configuration, weights, feature extractor, tokenizer, card.

    With a tokenizer it is a CTC model (`AutoModelForCTC`, `AutoProcessor`) or, with `generation` beside it, one that
    translates (`AutoModelForSpeechSeq2Seq`, `AutoProcessor`); without one a classifier
    (`AutoModelForAudioClassification`, `AutoFeatureExtractor`). `pipeline()` takes all of them. A retrieval model is a
    classifier to Transformers, whose logits, divided by their norm, are the embeddings. Each file is written aside and
    renamed into place. What an earlier export left of these files is removed; other files are left alone.

    Args:
        directory: made if absent.
        tensors: parameters by their Hugging Face names.
        config: content of config.json; `architectures`, the labels and the tokenizer's ids are filled in here.
        tokenizer: for CTC and translation.
        preprocessor: settings of the feature extractor, as `feature_extractors.read_preprocessor` returns them.
        id2label: for classification, the names of the classes by id, 0 to N - 1; None for retrieval, where `config`
            says how many numbers an embedding has.
        model_card: text of README.md.
        generation: for translation, the content of generation_config.json.
        target_lang: for a model with adapters, the language whose they are: they and the head go into a file of their
            own too, from which `load_adapter` of Transformers takes them.

    Raises:
        ValueError: the head's size differs from the vocabulary's or from the number of labels.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = dict(config) if generation is not None else _complete_config(config, tokenizer, id2label, tensors)
    staging = Path(tempfile.mkdtemp(prefix=".export-", dir=directory))
    try:
        write_processor(staging, tokenizer, preprocessor, content)
        if generation is not None:
            _write_json(staging / "generation_config.json", generation)
        _write_json(staging / "config.json", content)
        (staging / "README.md").write_text(model_card, encoding="utf-8")
        write_safetensors(directory, tensors)
        if target_lang is not None:
            part = {name: tensors[name] for name in tensors if is_of_language(name)}
            write_tensor_file(staging / language_file(target_lang), part)
        written = sorted(path.name for path in staging.iterdir())
        for name in written:
            os.replace(staging / name, directory / name)
        # A tokenizer, processor or adapter of an earlier export would be loaded together with these weights.
        earlier = {path.name for path in directory.glob(ADAPTER_FILES[0])}
        for name in earlier.union(CONFIG_FILES).difference(written):
            (directory / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging)


def language_file(name: str) -> str:
    """What the file with a language's adapters and head is called that `export` writes."""
    return ADAPTER_FILES[0].replace("*", name)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _complete_config(
    config: Mapping[str, Any],
    tokenizer: "Wav2Vec2CTCTokenizer | None",
    id2label: Mapping[int, str] | None,
    tensors: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """`config` with what the head implies, checked against the head's weights."""
    content = {"model_type": "wav2vec2", "dtype": "float32", **config}
    architecture = FAMILIES[content["model_type"]].config.architecture
    if tokenizer is not None:
        size, head = len(tokenizer), "lm_head.weight"
        content.update(vocab_size=size, pad_token_id=tokenizer.pad_token_id)
        content.update(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
        content["architectures"] = [f"{architecture}ForCTC"]
    elif id2label is None and is_retrieval(config):
        size, head = config["num_labels"], "classifier.weight"
    else:
        labels = {int(index): str(name) for index, name in (id2label or {}).items()}
        size, head = len(labels), "classifier.weight"
        if sorted(labels) != list(range(size)) or not size:
            raise ValueError(f"id2label must name the classes 0 to N - 1, not {sorted(labels)}")
        content["id2label"] = {str(index): labels[index] for index in sorted(labels)}
        content["label2id"] = {labels[index]: index for index in sorted(labels)}
        content["architectures"] = [f"{architecture}ForSequenceClassification"]
    if head not in tensors or tensors[head].shape[0] != size:
        rows = tensors[head].shape[0] if head in tensors else "no"
        raise ValueError(f"{head} has {rows} rows for {size} tokens or labels")
    return content


def files_to_push(directory: Path) -> list[str]:
    """What of a run's directory goes to the hub, by name: what `export` wrote, and the scores (`*_results.json`).

    Nothing else does: predictions, lists of skipped clips, logs and checkpoints hold transcripts and paths. So does an
    adapter alone that was trained on a model in a folder of this machine, and it would be of no use elsewhere.
    """
    patterns = list(_PUSHED)
    adapter = Path(directory) / ADAPTER_FOLDER / ADAPTER_CONFIG
    if adapter.is_file() and is_hub_id(str(read_json_object(adapter).get("base_model_name_or_path"))):
        patterns += _ADAPTER_ALONE
    found = {path for pattern in patterns for path in Path(directory).glob(pattern) if path.is_file()}
    return sorted(path.relative_to(directory).as_posix() for path in found)


def is_hub_id(name: str) -> bool:
    """Whether a name can be one on the hub: `owner/name`, and no folder here."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def checked_token(token: str | None) -> str | None:
    """The token, which must be fit for a header: HTTP libraries quote an unfit one in their error messages."""
    if token is not None and (
        not token or not token.isascii() or any(c.isspace() or not c.isprintable() for c in token)
    ):
        raise InputError(
            "The hub token is empty or holds spaces or other odd characters. Copy it again (it starts with hf_)."
        )
    return token


@contextmanager
def _explained(repo_id: str, token: str | None) -> Iterator[None]:
    """Turn the hub client's errors into InputErrors that say what to do."""
    checked_token(token)
    with_token = (
        "the token given" if token else "no token was given (--hub_token), and that of `hf auth login`, if any,"
    )
    try:
        yield
    except GatedRepoError as error:
        raise InputError(
            f"{repo_id} is gated: accept its terms on its page on the hub, then pass a token of that account."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{repo_id} is on the hub, but not in the revision asked for. Check the name.") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{repo_id} was not found on the hub, nor is it a directory here. Check the name. If it is private: "
            f"{with_token} may lack access."
        ) from error
    except HFValidationError as error:
        raise InputError(f"{repo_id} is neither a directory here nor a valid name on the hub: {error}") from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{repo_id} is not a directory here, and the hub cannot be reached (no network, HF_HUB_OFFLINE set, "
            "or the hub is down) while the cache does not hold all of it. Download it first, and give the directory."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = f"{with_token} may be invalid, or lack access" if status in (401, 403) else "try again later"
        raise InputError(f"The hub answered {status} for {repo_id}: {reason}.") from error
    except (HTTP_ERROR, OSError, RuntimeError, ValueError) as error:
        # What fails in a worker thread of the client arrives wrapped, with the reason inside.
        reasons = "; ".join(f"{type(e).__name__}: {e}" for e in (error, error.__cause__) if e is not None)
        raise InputError(f"{repo_id}: the exchange with the hub failed ({reasons}).") from error
