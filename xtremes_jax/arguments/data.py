"""Flags that say what to train on and what to score, how it is cleaned and how it is put into batches.

Names, defaults and meanings are those of `run_xtreme_s.py` and of Transformers' `TrainingArguments`; what is ours alone
is marked "(ours)" in its help.
"""

from dataclasses import dataclass

from xtremes_jax.arguments.flag import flag
from xtremes_jax.tasks import XTREME_S


@dataclass(frozen=True)
class DataArguments:
    """What to train on and what to score, how it is cleaned and how it is put into batches."""

    dataset_name: str = flag(
        XTREME_S,
        "Hub id, local directory, CSV/TSV/JSONL manifest, or demo for the built-in synthetic corpus.",
        scoring=True,
    )
    dataset_config_name: str | None = flag(
        None, "Config of the data set, such as mls.all or minds14.fr-FR; says task and language at once.", scoring=True
    )
    data_dir: str | None = flag(
        None,
        "Directory of data that is not downloaded: the LDC's BABEL packages, or for google/xtreme_s a mirror of the "
        "hub; of other data sets, the folder of the repository to read.",
        scoring=True,
    )
    task: str | None = flag(
        None, "Task of XTREME-S; see the table of tasks (unset: from --dataset_config_name).", scoring=True
    )
    language: str | None = flag(
        None,
        "One language as the data set's configs spell it, or all (unset: as the config says, else all).",
        scoring=True,
    )
    language_group: str | None = flag(
        None, "A geographical group of FLEURS languages, such as western_european_we.", scoring=True
    )
    train_split_name: str = flag("train", "Name of the split to train on.", needs=("train",))
    eval_split_name: str = flag(
        "validation", "Name of the split that is scored during and after training.", needs=("eval",)
    )
    predict_split_name: str = flag(
        "test", "Name of the split that is scored at the end.", scoring=True, needs=("predict",)
    )
    audio_column_name: str = flag("audio", "Name of the column that holds the clips.", scoring=True)
    target_column_name: str | None = flag(
        None, "Name of the column to predict (unset: the task's, such as transcription).", scoring=True
    )
    chars_to_ignore: tuple[str, ...] | None = flag(
        tuple(', ? . ! - ; : " “ % ‘ ” �'.split()),
        "Characters to strip from transcripts and translations, put between [ and ] of one regular expression as the "
        "reference does.",
        scoring=True,
        needs=("text",),
    )
    max_duration_in_seconds: float | None = flag(
        30.0, "Train only on clips shorter than this (none: no limit).", above=0, needs=("train",)
    )
    min_duration_in_seconds: float = flag(0.0, "Train only on clips longer than this.", at_least=0, needs=("train",))
    max_train_samples: int | None = flag(
        None, "Use only the first so many clips for training.", at_least=1, needs=("train",)
    )
    max_eval_samples: int | None = flag(
        None, "Use only the first so many clips of the evaluation split.", at_least=1, needs=("eval",)
    )
    max_predict_samples: int | None = flag(
        None, "Use only the first so many clips of the prediction split.", at_least=1, scoring=True, needs=("predict",)
    )
    preprocessing_only: bool = flag(False, "Stop after the data is prepared and cached.")
    preprocessing_num_workers: int | None = flag(
        None,
        "Threads that read the clips' headers (unset: as many as this process has cores).",
        at_least=1,
        scoring=True,
    )
    overwrite_cache: bool = flag(False, "Prepare the data anew even if a cached copy is there.", scoring=True)
    per_lang_metrics: bool = flag(
        True,
        "Score each language by itself and report their unweighted average; false pools all clips.",
        scoring=True,
        needs=("scores",),
    )
    unk_token: str = flag(
        "[UNK]",
        "Token for characters outside the vocabulary, in a tokenizer made from the data.",
        needs=("train", "ctc", "own_tokenizer"),
    )
    pad_token: str = flag(
        "[PAD]",
        "Padding token and CTC blank, in a tokenizer made from the data.",
        needs=("train", "ctc", "own_tokenizer"),
    )
    word_delimiter_token: str = flag(
        "|",
        "Token that stands for the space, in a tokenizer made from the data.",
        needs=("train", "ctc", "own_tokenizer"),
    )
    translation_vocab_size: int = flag(
        1000,
        "Subwords of a vocabulary that is made from the translations, for a decoder with random weights (ours).",
        at_least=8,
        needs=("train", "translation", "own_tokenizer", "own_decoder"),
    )
    max_skipped_fraction: float = flag(
        0.01,
        "Stop if more than this share of a split's clips cannot be used (ours).",
        at_least=0,
        at_most=1,
        scoring=True,
    )
    group_by_length: bool = flag(
        False,
        "Put clips of about the same length into one batch.",
        old=("train_sampling_strategy",),
        needs=("train", "batch_size"),
    )
    max_batch_seconds: float | None = flag(
        None,
        "Fill each device's training batch with up to so many seconds of padded audio, in place of "
        "--per_device_train_batch_size clips; groups by length (ours).",
        above=0,
        needs=("train",),
    )
    max_eval_batch_seconds: float | None = flag(
        None,
        "Fill each device's batch of clips to score with up to so many seconds of padded audio, in place of "
        "--per_device_eval_batch_size clips; a longer clip is a batch of its own (ours).",
        above=0,
        scoring=True,
        needs=("scores",),
    )
    max_buckets: int = flag(
        16,
        "Number of lengths that batches are padded to, at most; each is compiled once (ours).",
        at_least=1,
        scoring=True,
    )
    dataloader_num_workers: int = flag(
        0,
        "Processes that decode audio ahead of the devices; 0 decodes in threads of this one.",
        at_least=0,
        scoring=True,
    )
    dataloader_drop_last: bool = flag(
        False, "Leave out the last batch of an epoch if it is not full.", needs=("train",)
    )
    key_language: str = flag(
        "en",
        "Retrieval: language of the keys, as the data spell it (en_us) or by its code alone (ours).",
        scoring=True,
        needs=("retrieval",),
    )
    distractor_dataset_name: str | None = flag(
        None,
        "Retrieval: data set of more utterances in the language of the keys, among which the right ones must be found; "
        "named as for --dataset_name (ours).",
        scoring=True,
        needs=("scores", "retrieval"),
    )
    distractor_dataset_config_name: str | None = flag(
        None,
        "Config of the distractors, such as mls.en (ours).",
        scoring=True,
        needs=("scores", "retrieval"),
    )
    distractor_split_name: str | None = flag(
        None, "Split of the distractors (ours; unset: test).", scoring=True, needs=("scores", "retrieval")
    )
    write_embeddings: bool = flag(
        False,
        "Retrieval: write the embeddings of each scored split, as embeddings.npz (ours).",
        scoring=True,
        needs=("scores", "retrieval"),
    )
