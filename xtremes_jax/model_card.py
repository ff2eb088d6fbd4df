"""What an exported model says of itself: README.md for people, and its scores for programs.

The front matter follows https://huggingface.co/docs/hub/model-cards, the files in `.eval_results`
https://huggingface.co/docs/hub/eval-results. Tokens and local paths, which name a person's account or machine, are left
out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from xtremes_jax.hub import is_hub_id, language_file

_PRIVATE_ARGUMENTS = frozenset(
    "hub_token token use_auth_token push_to_hub_token output_dir cache_dir data_dir logging_dir compilation_cache_dir "
    "resume_from_checkpoint checkpoint_dir frontend_cache_dir coordinator_address process_id".split()
)
"""Tokens, places on a machine or in somebody's bucket, and machines."""
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


_WHAT = {
    "ctc": "A {} model for speech recognition",
    "classification": "A {} model for audio classification",
    "translation": "A {} encoder and an mBART decoder for speech translation",
    "retrieval": "A {} model for speech retrieval",
}
_MOST_ROWS = 20
"""Of the training curve."""
_SYNTHETIC = "synthetic speech"


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
    family: str = "wav2vec 2.0"
    """What people call it."""
    clips: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Split -> its clips that were used, and their hours."""
    target_lang: str | None = None
    """The language whose adapters and head the model has, as their file is called."""
    limited_to: int | None = None
    """Clips of the scored split, where it was cut to so many."""
    curve: Sequence[Mapping[str, float]] = ()
    """The course of training: `step`, and of `epoch`, `loss`, `eval_loss` and the metrics what was measured there."""
    best_step: int | None = None
    """Of the checkpoint that the model is, where that is not the last."""
    progress: tuple[int, int] | None = None
    """The step that the model is of, and the run's last, while it trains."""


def model_card(facts: CardFacts) -> str:
    """The text of README.md: YAML front matter, results per language, use, data, the training curve, arguments,
    versions."""
    sections = [f"---\n{_front_matter(facts)}\n---", _introduction(facts)]
    if facts.metrics:
        sections.append(_results(facts))
    sections.append(_usage(facts))
    if facts.clips:
        rows = [(f"`{split}`", clips, f"{hours:.2f}") for split, (clips, hours) in facts.clips.items()]
        lead = f"`{_data_name(facts)}` (`{facts.dataset_config_name}`), {_speech(facts)}:"
        sections.append(f"## Data\n\n{lead}\n\n" + _table(("split", "clips", "hours"), rows))
    if facts.curve:
        sections.append(_curve(facts))
    arguments = {name: value for name, value in facts.arguments.items() if name not in _PRIVATE_ARGUMENTS}
    if arguments:
        rows = [(f"`{name}`", _public(value)) for name, value in sorted(arguments.items()) if value is not None]
        sections.append("## Training arguments\n\n" + _table(("argument", "value"), rows))
    if facts.versions:
        sections.append("## Versions\n\n" + _table(("package", "version"), list(facts.versions.items())))
    return _without_tokens("\n\n".join(sections) + "\n")


def eval_results(facts: CardFacts) -> tuple[str, str] | None:
    """Name and text of the file in `.eval_results`: each metric on average, then by language; None without any.

    A data set that is not on the hub stands there by its name alone, which its notes say.
    """
    if not facts.metrics:
        return None
    subset = facts.dataset_config_name.partition(".")[0]
    scores = {facts.dataset_config_name: facts.metrics}
    for language, values in facts.per_language.items():
        scores.setdefault(f"{subset}.{language}", values)
    notes = f"xtremes_jax, split {facts.split}" + (f", its first {facts.limited_to} clips" if facts.limited_to else "")
    if facts.progress:
        notes += f", after step {facts.progress[0]} of {facts.progress[1]}"
    if not is_hub_id(facts.dataset_name):
        notes += "; the data set is not on the hub"
    if facts.synthetic:
        notes += "; SYNTHETIC SPEECH, which says nothing about real speech"
    entries = [
        EvalResultEntry(
            dataset_id=_data_name(facts), task_id=f"{config}_{name}", value=round(float(value), 6), notes=notes
        )
        for config, values in scores.items()
        for name, value in values.items()
        if value is not None
    ]
    return f"{facts.task}.yaml", _without_tokens(yaml_dump(eval_result_entries_to_yaml(entries)))


def _without_tokens(text: str) -> str:
    """The last word on tokens, wherever in the facts one may have been."""
    return _TOKEN.sub("hf_***", text)


def _front_matter(facts: CardFacts) -> str:
    pipeline_tag = _PIPELINE_TAGS[facts.kind]
    data_name = _data_name(facts)
    results = [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=facts.dataset_name if is_hub_id(facts.dataset_name) else data_name,
            dataset_name=f"{data_name} ({_SYNTHETIC})" if facts.synthetic else data_name,
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
        datasets=[facts.dataset_name] if is_hub_id(facts.dataset_name) else None,
        base_model=facts.base_model if facts.base_model and is_hub_id(facts.base_model) else None,
        metrics=list(facts.metrics) or None,
        model_name=_public(facts.model_name),
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _introduction(facts: CardFacts) -> str:
    parents = [f"`{_public(name)}`" for name in (facts.base_model, facts.decoder_model) if name]
    origin = f"fine-tuned from {' and '.join(parents)}" if parents else "trained from random weights"
    what = _WHAT[facts.kind].format(facts.family)
    if facts.kind == "translation" and all(language.endswith(".en") for language in facts.languages):
        what += " into English"
    text = f"# {_public(facts.model_name)}\n\n{what} (XTREME-S task `{facts.task}`), {origin} on "
    text += f"`{_data_name(facts)}` (`{facts.dataset_config_name}`) with xtremes_jax. It takes mono audio at 16 kHz."
    if facts.languages:
        text += f" Languages: {', '.join(facts.languages)}."
    if facts.target_lang is not None:
        text += f" Adapters, head and vocabulary are those of the language `{facts.target_lang}`"
        text += f" (`{language_file(facts.target_lang)}`)."
    if facts.progress:
        text += "\n\n**Training is in progress**: this is the model after step {} of {}.".format(*facts.progress)
    if facts.synthetic:
        text += (
            f"\n\n**The data is {_SYNTHETIC}**, made by a text-to-speech program. The figures below show that the "
            "program works; they say nothing about real speech."
        )
    return text


def _results(facts: CardFacts) -> str:
    names = list(facts.metrics)
    rows = [
        (language, *(_figure(scores.get(name)) for name in names)) for language, scores in facts.per_language.items()
    ]
    rows.append(("**all**", *(f"**{_figure(value)}**" for value in facts.metrics.values())))
    how = "as the XTREME-S metric defines them"
    if facts.kind == "retrieval":
        how = "every utterance in another language looked for among all keys"
    part = f"first {facts.limited_to} clips of the " if facts.limited_to else ""
    lead = f"On the {part}`{facts.split}` split of `{_data_name(facts)}` ({_speech(facts)}), {how}:"
    return f"## Results\n\n{lead}\n\n" + _table(("language", *names), rows)


def _speech(facts: CardFacts) -> str:
    return _SYNTHETIC if facts.synthetic else "speech"


def _curve(facts: CardFacts) -> str:
    """The course of training: the evaluations, or where there were none the log lines, thinned to what can be read."""
    scored = [row for row in facts.curve if row.keys() - {"step", "epoch", "loss"}]
    rows = _thinned(scored or facts.curve, facts.best_step)
    names = {"step": "step", "epoch": "epoch", "loss": "training loss", "eval_loss": "evaluation loss"}
    columns = [*names, *(name for name in dict.fromkeys(key for row in rows for key in row) if name not in names)]
    columns = [name for name in columns if any(row.get(name) is not None for row in rows)]
    body = [tuple(_point(name, row.get(name)) for name in columns) for row in rows]
    lead = "" if len(rows) == len(scored or facts.curve) else f"{len(rows)} of {len(scored or facts.curve)} rows. "
    if facts.best_step is not None:
        lead += f"The model is that of step {facts.best_step}, which was the best."
    table = _table([names.get(name, name) for name in columns], body)
    return "\n\n".join(part for part in ("## Training curve", lead.strip(), table) if part)


def _thinned(rows: Sequence[Mapping[str, float]], best_step: int | None) -> list[Mapping[str, float]]:
    """At most `_MOST_ROWS` rows, evenly spread, the first, the last and the best among them."""
    if len(rows) <= _MOST_ROWS:
        return list(rows)
    best = [number for number, row in enumerate(rows) if row["step"] == best_step]
    count = _MOST_ROWS - len(best)
    kept = {round(place * (len(rows) - 1) / (count - 1)) for place in range(count)} | set(best)
    return [rows[number] for number in sorted(kept)]


def _point(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if name == "step" else f"{value:.2f}" if name == "epoch" else f"{value:.4f}"


def _usage(facts: CardFacts) -> str:
    task = _PIPELINE_TAGS[facts.kind]
    name = facts.model_name if is_hub_id(facts.model_name) else "PATH_OR_ID"
    if facts.kind == "retrieval":
        return _USE_OF_EMBEDDINGS.replace("PATH_OR_ID", name)
    return (
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        f'model = pipeline("{task}", model="{name}")\n'
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
    return facts.dataset_name if is_hub_id(facts.dataset_name) else Path(facts.dataset_name).name


def _public(value: object) -> str:
    """A value as text (the items of a list, with spaces between them); of a local path only the last part."""
    if isinstance(value, (list, tuple)):
        return " ".join(_public(item) for item in value)
    text = str(value)
    is_path = ("/" in text or "\\" in text) and not is_hub_id(text)
    # A separator alone has no last part: it is one of the characters to ignore.
    return (PureWindowsPath(text).name or text) if is_path else text


def _language_codes(languages: Sequence[str]) -> list[str]:
    """ISO 639 codes of XTREME-S languages, as the hub wants them: `fr_fr` and `fr-FR` are `fr`, `fr.en` is `fr` and
    `en`; other names are left to the table of results."""
    names = [part for language in languages for part in language.split(".")]
    codes = {re.split(r"[_-]", name)[0].lower() for name in names}
    return sorted(code for code in codes if re.fullmatch(r"[a-z]{2,3}", code) and code != "all")
