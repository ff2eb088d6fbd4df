"""Flags that say which weights to start from, and how they are regularised while training.

Names, defaults and meanings are those of `run_xtreme_s.py` and of Transformers' `TrainingArguments`; what is ours alone
is marked "(ours)" in its help.
"""

from dataclasses import dataclass

from xtremes_jax.arguments.flag import flag

RETRIEVAL_LOSSES = ("contrastive", "margin")


@dataclass(frozen=True)
class ModelArguments:
    """Which weights to start from, and how they are regularised while training."""

    model_name_or_path: str | None = flag(
        None, "Hub id or directory of the Transformers checkpoint to start from.", scoring=True
    )
    config_name: str | None = flag(
        None,
        "Start from random weights in this shape: a preset (tiny, small, base, xls_r_300m, xls_r_1b, xls_r_2b, "
        "w2v_bert_2) or the path of a config.json (ours: in Transformers' scripts it only replaces the configuration).",
    )
    decoder_name_or_path: str | None = flag(
        None,
        "Hub id or directory of the mBART whose decoder is joined to the encoder, for translation (ours).",
        needs=("train", "translation"),
    )
    decoder_config_name: str | None = flag(
        None,
        "Join a decoder with random weights in this shape, for translation: a preset (tiny, small, mbart_large) or the "
        "path of a config.json (ours).",
        needs=("train", "translation"),
    )
    add_adapter: bool | None = flag(
        None,
        "Shorten the encoder's output by strided convolutions before the decoder reads it (unset: as the checkpoint "
        "says, else not).",
        needs=("train", "translation"),
    )
    freeze_encoder: bool = flag(
        False,
        "Keep the whole encoder as it was pretrained, and train the head or the decoder alone, with adapters that the "
        "checkpoint lacks.",
        needs=("train",),
    )
    freeze_encoder_steps: int = flag(
        0,
        "Updates at the beginning in which only the head, or the decoder, is trained; after them, all that is not "
        "frozen otherwise (ours).",
        at_least=0,
        needs=("train", "encoder_trains"),
    )
    freeze_decoder: bool = flag(
        False,
        "Keep the decoder as it was pretrained, apart from cross-attention that it did not have (ours).",
        needs=("train", "translation"),
    )
    tokenizer_name_or_path: str | None = flag(
        None,
        "Hub id or directory of the tokenizer; without it the vocabulary is made from the targets, unless a pretrained "
        "decoder brings one.",
        scoring=True,
        needs=("text",),
    )
    target_lang: str | None = flag(
        None,
        "Language of a checkpoint with adapters, as MMS has them: the adapters, head and vocabulary of adapter.<it>."
        "safetensors beside the weights take the place of the checkpoint's; in training a language without that file "
        "is a new one (ours).",
        old=("target_language",),
        scoring=True,
    )
    adapter_attn_dim: int | None = flag(
        None,
        "Add an adapter this wide to each layer of a checkpoint without them, as those of MMS, whose are 16 wide "
        "(unset: as the checkpoint says).",
        at_least=1,
        needs=("train",),
    )
    train_adapters_only: bool = flag(
        False,
        "Train the adapters in the layers and the head alone: all else stays as it was pretrained, and has no moments "
        "in the optimizer (ours).",
        needs=("train",),
    )
    cache_dir: str | None = flag(
        None, "Folder for downloads and prepared data, in place of the Hugging Face cache.", scoring=True
    )
    freeze_feature_encoder: bool = flag(
        True,
        "Keep the convolutional front end as it was pretrained.",
        old=("freeze_feature_extractor",),
        needs=("train",),
    )
    lora_rank: int | None = flag(
        None,
        "Keep the encoder as it was pretrained and train low-rank factors of this rank beside its linear maps (LoRA), "
        "with the head or the decoder (ours).",
        at_least=1,
        needs=("train",),
    )
    lora_alpha: float = flag(
        8.0,
        "What the product of the factors is multiplied with, times the rank (ours; PEFT's default).",
        above=0,
        needs=("train", "lora"),
    )
    lora_targets: tuple[str, ...] = flag(
        (),
        "Names of the linear maps to adapt, as Transformers calls them, such as q_proj v_proj (ours; unset: all of "
        "attention and feed-forward).",
        needs=("train", "lora"),
    )
    cache_frontend: bool = flag(
        False,
        "Compute the frames of the frozen front end once a clip and keep them on disk in bfloat16, to which they are "
        "rounded in any precision: 51 KB for a second of audio at 512 channels; used from the second epoch on (ours).",
        needs=("train",),
    )
    frontend_cache_dir: str | None = flag(
        None,
        "Folder of the frames that --cache_frontend keeps (ours; unset: frames in the folder of prepared data).",
        needs=("train", "frontend_cache"),
    )
    mask_padding: bool | None = flag(
        None,
        "Keep the padding of a batch out of norms over time, attention and pooling, so that a clip gives what it gives "
        "alone (ours; unset: as the checkpoint's feature extractor says, as in Transformers: models with a group norm "
        "take padding as silence).",
        scoring=True,
    )
    attention_dropout: float = flag(
        0.0, "Dropout rate of the attention weights.", at_least=0, below=1, needs=("train",)
    )
    activation_dropout: float = flag(
        0.0, "Dropout rate inside the feed-forward blocks.", at_least=0, below=1, needs=("train",)
    )
    feat_proj_dropout: float = flag(
        0.0, "Dropout rate of the projected features.", at_least=0, below=1, needs=("train",)
    )
    hidden_dropout: float = flag(
        0.0, "Dropout rate of the hidden states in the encoder.", at_least=0, below=1, needs=("train",)
    )
    final_dropout: float = flag(0.0, "Dropout rate before the CTC head.", at_least=0, below=1, needs=("train", "ctc"))
    mask_time_prob: float = flag(
        0.05, "Share of frames that SpecAugment masks, at most.", at_least=0, at_most=1, needs=("train",)
    )
    mask_time_length: int = flag(10, "Length of a masked span, in frames.", at_least=1, needs=("train",))
    mask_feature_prob: float = flag(
        0.0, "Share of feature channels that SpecAugment masks.", at_least=0, at_most=1, needs=("train",)
    )
    mask_feature_length: int = flag(10, "Width of a masked span, in feature channels.", at_least=1, needs=("train",))
    layerdrop: float = flag(
        0.0, "Probability of leaving out an encoder layer in a step.", at_least=0, below=1, needs=("train",)
    )
    ctc_zero_infinity: bool = flag(
        False, "Count clips whose transcript cannot be aligned as loss 0, not infinity.", needs=("train", "ctc")
    )
    ctc_loss_reduction: str = flag(
        "mean",
        "Whether a batch's CTC loss is the mean per label or the sum.",
        choices=("mean", "sum"),
        needs=("train", "ctc"),
    )
    use_weighted_layer_sum: bool | None = flag(
        None,
        "Feed the head for classification or retrieval a learned mix of all layers (ours; unset: as the checkpoint "
        "says).",
        needs=("train", "pooled"),
    )
    embedding_dim: int | None = flag(
        None,
        "Retrieval: width of the embeddings (ours; unset: that of a retrieval checkpoint, else 256).",
        at_least=1,
        needs=("train", "retrieval"),
    )
    retrieval_loss: str = flag(
        "contrastive",
        "Retrieval: symmetric in-batch cross entropy with a learned temperature, or a margin ranking loss with sampled "
        "negatives (ours).",
        choices=RETRIEVAL_LOSSES,
        needs=("train", "retrieval"),
    )
    retrieval_margin: float = flag(
        0.2, "Margin of --retrieval_loss margin, in cosines (ours).", above=0, at_most=2, needs=("train", "retrieval")
    )
    retrieval_negatives: int = flag(
        19,
        "Negatives that --retrieval_loss margin draws for each query from the other keys of the batch (ours).",
        at_least=1,
        needs=("train", "retrieval"),
    )
