"""README.md of an exported model: what it is, how well it does per language, how it was trained.

The front matter follows https://huggingface.co/docs/hub/model-cards. Tokens and local paths, which
name a person's account or machine, are left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

_PRIVATE_ARGUMENTS = frozenset(
    "hub_token token use_auth_token push_to_hub_token output_dir cache_dir data_dir logging_dir compilation_cache_dir "
    "resume_from_checkpoint".split()
)
_PIPELINE_TAGS = {
    "ctc": "automatic-speech-recognition",
    "classification": "audio-classification",
    "retrieval": "feature-extraction",
    "translation": "automatic-speech-recognition",  # also of speech encoder-decoders that write another language
}
_USE_OF_EMBEDDINGS = """## Use

```python
import xtremes_jax

model = xtremes_jax.load_model("PATH_OR_ID")
embeddings = model(audio, audio_lengths).logits  # [batch, embedding], of length 1; their products are cosines
```

To Transformers it is a classifier (`AutoModelForAudioClassification`): its logits, divided by their norm, are the
embeddings."""
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


_WHAT = {
    "ctc": "A wav2vec 2.0 model for speech recognition",
    "classification": "A wav2vec 2.0 model for audio classification",
    "translation": "A wav2vec 2.0 encoder and an mBART decoder for speech translation into English",
    "retrieval": "A wav2vec 2.0 model for speech retrieval",
}


@dataclass(frozen=True)
class CardFacts:
    """What a model card states.

    Metrics are fractions (a word error rate of 0.25), by the names of the task's metrics, the primary one first;
    `metrics` holds the average over languages, `per_language` the parts. `synthetic` marks speech that no person spoke,
    as in the demo corpus.
    """

    model_name: str
    kind: Literal["ctc", "classification", "translation", "retrieval"]
    task: str
    dataset_name: str
    dataset_config_name: str
    languages: Sequence[str] = ()
    split: str = "test"
    metrics: Mapping[str, float] = field(default_factory=dict)
    per_language: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    base_model: str | None = None
    """What the run started from; for translation the encoder, or both halves in one."""
    decoder_model: str | None = None
    """The decoder that was joined to the encoder, if it was pretrained."""
    synthetic: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    model_type: str = "wav2vec2"
    """What the encoder's config.json calls its family."""


def model_card(facts: CardFacts) -> str:
    """The text of README.md: YAML front matter, results per language, use, training arguments, versions."""
    sections = [f"---\n{_front_matter(facts)}\n---", _introduction(facts)]
    if facts.metrics:
        sections.append(_results(facts))
    sections.append(_usage(facts))
    arguments = {name: value for name, value in facts.arguments.items() if name not in _PRIVATE_ARGUMENTS}
    if arguments:
        rows = [(f"`{name}`", _public(value)) for name, value in sorted(arguments.items()) if value is not None]
        sections.append("## Training arguments\n\n" + _table(("argument", "value"), rows))
    if facts.versions:
        sections.append("## Versions\n\n" + _table(("package", "version"), list(facts.versions.items())))
    # The last word on tokens, wherever in the facts one may have been.
    return _TOKEN.sub("hf_***", "\n\n".join(sections) + "\n")


def _front_matter(facts: CardFacts) -> str:
    pipeline_tag = _PIPELINE_TAGS[facts.kind]
    data_name = _data_name(facts)
    results = [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=facts.dataset_name if _is_hub_id(facts.dataset_name) else data_name,
            dataset_name=f"{data_name} (synthetic speech)" if facts.synthetic else data_name,
            dataset_config=facts.dataset_config_name,
            dataset_split=facts.split,
            metric_type=name,
            metric_value=round(float(value), 6),
        )
        for name, value in facts.metrics.items()
    ]
    data = ModelCardData(
        library_name="transformers",
        tags=["xtreme_s", "jax", facts.model_type, facts.task] + (["synthetic-data"] if facts.synthetic else []),
        pipeline_tag=pipeline_tag,
        language=_language_codes(facts.languages) or None,
        datasets=[facts.dataset_name] if _is_hub_id(facts.dataset_name) else None,
        base_model=facts.base_model if facts.base_model and _is_hub_id(facts.base_model) else None,
        metrics=list(facts.metrics) or None,
        model_name=_public(facts.model_name),
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _introduction(facts: CardFacts) -> str:
    parents = [f"`{_public(name)}`" for name in (facts.base_model, facts.decoder_model) if name]
    origin = f"fine-tuned from {' and '.join(parents)}" if parents else "trained from random weights"
    text = f"# {_public(facts.model_name)}\n\n{_WHAT[facts.kind]} (XTREME-S task `{facts.task}`), {origin} on "
    text += f"`{_data_name(facts)}` (`{facts.dataset_config_name}`) with xtremes_jax. It takes mono audio at 16 kHz."
    if facts.synthetic:
        text += (
            "\n\n**The data is synthetic speech**, made by a text-to-speech program. The figures below show that the "
            "program works; they say nothing about real speech."
        )
    return text


def _results(facts: CardFacts) -> str:
    names = list(facts.metrics)
    rows = [
        (language, *(_figure(scores.get(name)) for name in names)) for language, scores in facts.per_language.items()
    ]
    rows.append(("**all**", *(f"**{_figure(value)}**" for value in facts.metrics.values())))
    speech = "synthetic speech" if facts.synthetic else "speech"
    how = "as the XTREME-S metric defines them"
    if facts.kind == "retrieval":
        how = "every utterance in another language looked for among all keys"
    lead = f"On the `{facts.split}` split of `{_data_name(facts)}` ({speech}), {how}:"
    return f"## Results\n\n{lead}\n\n" + _table(("language", *names), rows)


def _usage(facts: CardFacts) -> str:
    task = _PIPELINE_TAGS[facts.kind]
    if facts.kind == "retrieval":
        return _USE_OF_EMBEDDINGS
    return (
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        f'model = pipeline("{task}", model="PATH_OR_ID")\n'
        'print(model({"raw": waveform, "sampling_rate": 16000}))  # waveform: float32 NumPy array, mono\n```'
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _data_name(facts: CardFacts) -> str:
    """The data set without the folders it lies in."""
    return facts.dataset_name if _is_hub_id(facts.dataset_name) else Path(facts.dataset_name).name


def _is_hub_id(name: str) -> bool:
    """Whether a name can be one on the hub: `owner/name`, and no folder here."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def _public(value: object) -> str:
    """A value as text (the items of a list, with spaces between them); of a local path only the last part."""
    if isinstance(value, (list, tuple)):
        return " ".join(_public(item) for item in value)
    text = str(value)
    is_path = ("/" in text or "\\" in text) and not _is_hub_id(text)
    # A separator alone has no last part: it is one of the characters to ignore.
    return (PureWindowsPath(text).name or text) if is_path else text


def _language_codes(languages: Sequence[str]) -> list[str]:
    """ISO 639 codes of XTREME-S languages, as the hub wants them: `fr_fr` and `fr-FR` are `fr`; other names are left to
    the table of results."""
    codes = {re.split(r"[_-]", language)[0].lower() for language in languages}
    return sorted(code for code in codes if re.fullmatch(r"[a-z]{2,3}", code) and code != "all")
