"""The architecture of a speech encoder and its head, to and from the `config.json` of Transformers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from xtremes_jax.errors import InputError
from xtremes_jax.models.config_checks import check_config
from xtremes_jax.models.config_fields import from_json, shown

Head = Literal["ctc", "classification", "retrieval"]

_ENDINGS: dict[str, Head] = {"ForCTC": "ctc", "ForSequenceClassification": "classification"}
"""Of the names of Transformers' classes, which begin with the family's (`ModelConfig.architecture`)."""
_HEAD_KEY = "xtremes_jax_head"
"""Key of config.json under which a retrieval model says what it is: to Transformers, it is a classifier whose logits,
divided by their norm, are the embeddings."""

ADAPTER_FIELDS = ("add_adapter", "num_adapter_layers", "adapter_kernel_size", "adapter_stride", "output_hidden_size")
"""Fields of the convolutional adapter, which not every family has."""
LANGUAGE_ADAPTER = "adapter_attn_dim"
"""The field of the adapters in the layers, which not every family has either."""
_NOT_STORED_BY_TRANSFORMERS = ("head", "num_labels", "logit_scale", "normalize_waveform", "mask_padding")


@dataclass(frozen=True)
class ModelConfig:
    """One wav2vec 2.0 model (Baevski et al. 2020; XLS-R: Babu et al. 2021): shapes, regularisation and head.

    Field names and defaults are those of `transformers.Wav2Vec2Config`, which are the base model's. The object is
    hashable, so it can be a static argument of `jax.jit`. Raises `InputError` where the fields do not fit together.
    Other families of encoders are subclasses, with what they have beside these fields.
    """

    model_type: ClassVar[str] = "wav2vec2"
    """What a `config.json` calls the family."""
    family: ClassVar[str] = "wav2vec 2.0, XLSR-53, XLS-R"
    """What people call it."""
    architecture: ClassVar[str] = "Wav2Vec2"
    """What the names of Transformers' classes begin with."""
    root: ClassVar[str] = "wav2vec2"
    """What the names of the encoder's tensors begin with in a checkpoint."""
    always_has_mask_vector: ClassVar[bool] = False
    """Whether Transformers' model has `masked_spec_embed` even where both masking probabilities are 0."""
    lacking: ClassVar[tuple[str, ...]] = ()
    """Fields of this class that the family's configuration in Transformers does not have: they keep their defaults."""
    unsupported: ClassVar[tuple[str, ...]] = ("position_embeddings_type", "quantization_config")
    """Fields of a `config.json` that stand for parts which are not implemented here."""
    feature_extractor: ClassVar[str] = "Wav2Vec2FeatureExtractor"
    """Transformers' class of what prepares audio for the family."""
    processor: ClassVar[str] = "Wav2Vec2Processor"
    """Transformers' class that joins it with a tokenizer."""

    # The convolutional front end: waveform -> frames (50 a second with the default strides).
    conv_dim: tuple[int, ...] = (512,) * 7
    """Channels after each convolution."""
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Kernel width of each convolution, in its own input steps."""
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Stride of each convolution; their product is the number of samples per frame."""
    conv_bias: bool = False
    """Whether the convolutions have a bias (XLS-R: yes)."""
    feat_extract_norm: str = "group"
    """`group`: one per-channel normalisation over time, after the first convolution; `layer`: layer norm after each."""
    feat_extract_activation: str = "gelu"
    """Activation of the front end and of the positional convolution."""

    # The encoder.
    hidden_size: int = 768
    """Width of the encoder."""
    num_hidden_layers: int = 12
    """Number of Transformer layers."""
    num_attention_heads: int = 12
    """Attention heads per layer; divides `hidden_size`."""
    intermediate_size: int = 3072
    """Width of the feed-forward block."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward block."""
    num_conv_pos_embeddings: int = 128
    """Kernel width of the positional convolution, in frames."""
    num_conv_pos_embedding_groups: int = 16
    """Channel groups of the positional convolution; divides `hidden_size`."""
    do_stable_layer_norm: bool = False
    """True: layer norm before each block and after the last layer (XLS-R); False: after each block (base)."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the encoder's layer norms (those of the front end always use 1e-5, as in PyTorch)."""
    initializer_range: float = 0.02
    """Standard deviation of newly drawn linear layers."""
    adapter_attn_dim: int | None = None
    """Width of the bottleneck of an adapter after each layer's feed-forward block (MMS, Pratap et al. 2023), which is
    the part of a language. None: there is none, nor where norms stand after the blocks."""

    # The convolutional adapter, which shortens the encoder's output.
    add_adapter: bool = False
    """Whether strided convolutions follow the encoder (never with a classification head)."""
    num_adapter_layers: int = 3
    """Number of these convolutions."""
    adapter_kernel_size: int = 3
    """Kernel width of each, in its own input frames."""
    adapter_stride: int = 2
    """Stride of each."""
    output_hidden_size: int = 0
    """Width of the adapter's output; 0 for `hidden_size`."""

    # Regularisation, in training only.
    hidden_dropout: float = 0.1
    """Dropout rate after the attention, the feed-forward block and the positional convolution."""
    activation_dropout: float = 0.1
    """Dropout rate inside the feed-forward block."""
    attention_dropout: float = 0.1
    """Dropout rate of the attention probabilities."""
    feat_proj_dropout: float = 0.0
    """Dropout rate after the projection of the front end's features."""
    final_dropout: float = 0.1
    """Dropout rate before the CTC head."""
    layerdrop: float = 0.1
    """Probability of skipping a whole layer (Fan et al. 2019)."""
    apply_spec_augment: bool = True
    """Master switch of the four numbers below (SpecAugment, Park et al. 2019)."""
    mask_time_prob: float = 0.05
    """Share of the frames that spans of masked frames would cover if they did not overlap."""
    mask_time_length: int = 10
    """Length of a masked span, in frames."""
    mask_time_min_masks: int = 2
    """Fewest spans per clip."""
    mask_feature_prob: float = 0.0
    """Share of the encoder's channels that spans of masked channels would cover if they did not overlap."""
    mask_feature_length: int = 10
    """Length of a masked span, in channels."""
    mask_feature_min_masks: int = 0
    """Fewest spans of channels per clip."""

    # The head.
    head: Head | None = None
    """`ctc` (a label distribution per frame), `classification` (one per clip), `retrieval` (a unit vector per clip), or
    none chosen yet."""
    vocab_size: int = 32
    """Labels of the CTC head, the blank among them."""
    pad_token_id: int = 0
    """The padding token, which is CTC's blank."""
    num_labels: int = 2
    """Classes of the classification head; of the retrieval head, the width of the embeddings."""
    classifier_proj_size: int = 256
    """Width of the projection before pooling, in the heads for classification and retrieval."""
    use_weighted_layer_sum: bool = False
    """Whether these two heads read a learned average of all layers instead of the last one."""
    logit_scale: float = math.log(1 / 0.07)
    """Natural logarithm of what cosines are multiplied with in the contrastive loss: where the parameter of this name
    starts in the retrieval head (as CLIP's, Radford et al. 2021), and what it has become in an exported one."""
    ctc_loss_reduction: str = "sum"
    """`sum` or `mean`; kept for the exported configuration, the loss itself is not part of the model."""
    ctc_zero_infinity: bool = False
    """Whether infinite CTC losses count as 0; kept for the exported configuration, as above."""

    normalize_waveform: bool = True
    """Whether waveforms are brought to zero mean and unit variance (`do_normalize` of `preprocessor_config.json`)."""
    mask_padding: bool = True
    """Whether a batch's padding is kept out of norms over time, attention and pooling, so that every clip gives what it
    gives alone (`return_attention_mask` of `preprocessor_config.json`). Otherwise it counts as silence that belongs to
    the clip, as in Transformers for the models with a group norm."""

    def __post_init__(self) -> None:
        check_config(self)

    @classmethod
    def from_huggingface(
        cls, config: Mapping[str, Any], *, head: Head | None = None, normalize_waveform: bool = True
    ) -> "ModelConfig":
        """Reads the contents of a `config.json`.

        Args:
            config: the parsed JSON; fields that say nothing about the architecture are passed over.
            head: the head to use; by default the one that the checkpoint's `architectures` names, if any.
            normalize_waveform: `do_normalize` of the checkpoint's feature extractor.

        Raises:
            InputError: the model is of another family, or has a part that is not implemented; the field is named.
        """
        _refuse_unsupported(config, cls)
        if head is None and is_retrieval(config):
            head = "retrieval"
        elif head is None:
            heads = {f"{cls.architecture}{ending}": head for ending, head in _ENDINGS.items()}
            head = next((heads[name] for name in _architectures(config) if name in heads), None)
        known = {field.name for field in dataclasses.fields(cls)} - {*_NOT_STORED_BY_TRANSFORMERS, *cls.lacking}
        fields = {name: value for name, value in config.items() if name in known and value is not None}
        width = fields.get("hidden_size", cls.hidden_size)
        if not fields.get("add_adapter") or fields.get("output_hidden_size") == width:
            fields.pop("output_hidden_size", None)
        fields["num_labels"] = _count_labels(config)
        if is_retrieval(config):
            fields["logit_scale"] = config.get("logit_scale", cls.logit_scale)
        for field in dataclasses.fields(cls):
            if field.name in fields:
                fields[field.name] = from_json(field, fields[field.name])
        return cls(**fields, head=head, normalize_waveform=normalize_waveform)

    def to_huggingface(self, *, label_names: Sequence[str] | None = None) -> dict[str, Any]:
        """The contents of a `config.json` from which Transformers builds the same model.

        Args:
            label_names: names of the classes, for the classification head (`LABEL_0`, … by default).

        Raises:
            InputError: the number of names is not `num_labels`.
        """
        names = [f"LABEL_{index}" for index in range(self.num_labels)] if label_names is None else list(label_names)
        if len(names) != self.num_labels:
            raise InputError(f"{len(names)} label names were given for a head of {self.num_labels} labels.")
        written: dict[str, Any] = {"model_type": self.model_type, "dtype": "float32"}
        if self.head is not None:
            like = "classification" if self.head == "retrieval" else self.head
            written["architectures"] = [f"{self.architecture}{end}" for end, head in _ENDINGS.items() if head == like]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in (*_NOT_STORED_BY_TRANSFORMERS, *self.lacking) and value is not None:
                written[field.name] = list(value) if isinstance(value, tuple) else value
        if "output_hidden_size" in written:
            written["output_hidden_size"] = self.output_width
        if "conv_dim" in written:
            written["num_feat_extract_layers"] = len(self.conv_dim)
        if self.head == "classification":
            written["id2label"] = {str(index): name for index, name in enumerate(names)}
            written["label2id"] = {name: index for index, name in enumerate(names)}
        if self.head == "retrieval":
            written |= {_HEAD_KEY: "retrieval", "num_labels": self.num_labels, "logit_scale": self.logit_scale}
        return written

    def num_frames(self, num_samples: Any) -> Any:
        """Frames that the front end makes of `num_samples` samples at 16 kHz (int, NumPy or JAX integers), at least 0.

        See `steps_after` for what each convolution does.
        """
        length = num_samples
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            length = steps_after(length, kernel, stride)
        return length

    def num_output_frames(self, num_samples: Any) -> Any:
        """Frames that the whole encoder makes of `num_samples` samples: with an adapter fewer than `num_frames`.

        Transformers counts an adapter's frames as though its kernels were 1 wide and unpadded, whatever
        `adapter_kernel_size` is; where the convolutions give fewer than that, those count.
        """
        counted = actual = self.num_frames(num_samples)
        for _ in range(self.num_adapter_layers if self.add_adapter else 0):
            counted = steps_after(counted, 1, self.adapter_stride)
            actual = self.adapter_steps(actual)
        return counted - (counted - actual) * (counted > actual)

    def adapter_steps(self, steps: Any) -> Any:
        """Frames that one convolution of the adapter, padded by a frame at both ends, makes of `steps`; 0 of none."""
        return steps_after(steps + 2, self.adapter_kernel_size, self.adapter_stride) * (steps > 0)

    @property
    def output_width(self) -> int:
        """Features of each frame that leaves the encoder, or its adapter."""
        return (self.output_hidden_size if self.add_adapter else 0) or self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Elements of all matrices and kernels: the model's parameters but for biases, norms and other vectors."""
        width, out = self.hidden_size, self.output_width
        count = self.num_convolutional + self.conv_dim[-1] * width + self.num_positional
        count += self.num_hidden_layers * self.num_of_layer
        if self.add_adapter:
            count += self.num_adapter_layers * self.num_of_adapter_layer + width * out * (width != out)
        if self.head == "ctc":
            return count + out * self.vocab_size
        return count + (width + self.num_labels) * self.classifier_proj_size * (self.head is not None)

    @property
    def num_convolutional(self) -> int:
        """Elements of the kernels of the front end."""
        inputs = (1, *self.conv_dim[:-1])
        return sum(i * o * k for i, o, k in zip(inputs, self.conv_dim, self.conv_kernel, strict=True))

    @property
    def num_of_adapter_layer(self) -> int:
        """Elements of the kernels of one layer of the adapter."""
        return self.adapter_kernel_size * 2 * self.output_width**2

    @property
    def has_language_adapters(self) -> bool:
        """Whether there is an adapter in each layer: as in Transformers, in the stable layout alone."""
        return self.adapter_attn_dim is not None and self.do_stable_layer_norm

    @property
    def num_of_layer(self) -> int:
        """Elements of the matrices of one Transformer layer."""
        bottleneck = (self.adapter_attn_dim or 0) * self.has_language_adapters
        return self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size + 2 * bottleneck)

    @property
    def num_positional(self) -> int:
        """Elements of the kernel of the positional convolution, and of what else tells places to all layers."""
        return self.num_conv_pos_embeddings * self.hidden_size**2 // self.num_conv_pos_embedding_groups

    @property
    def min_samples(self) -> int:
        """Fewest samples that make one frame (400, a fortieth of a second, for every published model)."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples


def steps_after(steps: Any, kernel: int, stride: int) -> Any:
    """Steps that an unpadded convolution makes of `steps`: `floor((steps - kernel) / stride) + 1`, at least 0."""
    count = (steps - kernel) // stride + 1
    return count * (count > 0)  # works alike on Python, NumPy and JAX integers


def is_retrieval(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a retrieval model that this package has exported."""
    return config.get(_HEAD_KEY) == "retrieval"


def _architectures(config: Mapping[str, Any]) -> Sequence[str]:
    """`architectures` of a `config.json`: a list of class names, empty where there is none."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"config.json: architectures is {shown(names)}; it must be a list of class names.")
    return names


def label_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the classes of a `config.json` by class id; empty where it names none.

    Raises:
        InputError: `id2label` is no object of names whose keys are the numbers from 0 on.
    """
    labels = config.get("id2label")
    if labels is None or labels == {}:
        return []
    usable = isinstance(labels, Mapping) and all(str(key).isdecimal() and len(str(key)) < 8 for key in labels)
    usable = usable and {int(key) for key in labels} == set(range(len(labels)))
    if not usable or not all(isinstance(name, str | int) for name in labels.values()):
        raise InputError(f'config.json: id2label is {shown(labels)}; it must be like {{"0": "yes", "1": "no"}}.')
    return [str(labels[key]) for key in sorted(labels, key=int)]


def _count_labels(config: Mapping[str, Any]) -> Any:
    """The number of classes: as many as `id2label` names, or `num_labels` (checked with the other numbers)."""
    names = label_names(config)
    if names:
        return len(names)
    found = config.get("num_labels")
    return 2 if found is None else found


def _refuse_unsupported(config: Mapping[str, Any], kind: type[ModelConfig]) -> None:
    """Raises `InputError` for a `config.json` of another family, or of a model with parts that are not implemented."""
    if config.get("model_type") != kind.model_type:
        raise InputError(f"config.json has model_type {shown(config.get('model_type'))}, not {kind.model_type!r}.")
    for name in kind.unsupported:
        if config.get(name) is not None:
            what = " (an adapter in each layer)" if name == "adapter_attn_dim" else ""
            raise InputError(
                f"config.json sets {name}{what} to {shown(config[name])}, which is not implemented here. Choose a "
                "checkpoint without it."
            )
