"""The flags of retrieval, which `fields.py` takes into its dataclasses."""

from xtremes_jax.arguments.flag import flag

LOSSES = ("contrastive", "margin")

EMBEDDING_DIM = flag(
    None,
    "Retrieval: width of the embeddings (ours; unset: that of a retrieval checkpoint, else 256).",
    at_least=1,
    needs=("train", "retrieval"),
)
RETRIEVAL_LOSS = flag(
    "contrastive",
    "Retrieval: symmetric in-batch cross entropy with a learned temperature, or a margin ranking loss with sampled "
    "negatives (ours).",
    choices=LOSSES,
    needs=("train", "retrieval"),
)
RETRIEVAL_MARGIN = flag(
    0.2, "Margin of --retrieval_loss margin, in cosines (ours).", above=0, at_most=2, needs=("train", "retrieval")
)
RETRIEVAL_NEGATIVES = flag(
    19,
    "Negatives that --retrieval_loss margin draws for each query from the other keys of the batch (ours).",
    at_least=1,
    needs=("train", "retrieval"),
)
KEY_LANGUAGE = flag(
    "en",
    "Retrieval: language of the keys, as the data spell it (en_us) or by its code alone (ours).",
    scoring=True,
    needs=("retrieval",),
)
DISTRACTOR_DATASET_NAME = flag(
    None,
    "Retrieval: data set of more utterances in the language of the keys, among which the right ones must be found; "
    "named as for --dataset_name (ours).",
    scoring=True,
    needs=("scores", "retrieval"),
)
DISTRACTOR_DATASET_CONFIG_NAME = flag(
    None,
    "Config of the distractors, such as mls.en (ours).",
    scoring=True,
    needs=("scores", "retrieval"),
)
DISTRACTOR_SPLIT_NAME = flag(
    None, "Split of the distractors (ours; unset: test).", scoring=True, needs=("scores", "retrieval")
)
WRITE_EMBEDDINGS = flag(
    False,
    "Retrieval: write the embeddings of each scored split, as embeddings.npz (ours).",
    scoring=True,
    needs=("scores", "retrieval"),
)
