"""Directories that hold a low-rank adapter in PEFT's format, perhaps beside small files of the model that it makes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtremes_jax import hub
from xtremes_jax.errors import InputError
from xtremes_jax.models import TRANSLATION_MODEL_TYPE, config_class_of
from xtremes_jax.models.peft import Adapter, merged_tensors, read_settings, root_of_config, with_heads
from xtremes_jax.models.weights import Tensors, read_json_object, read_tensor_file, read_tensors


@dataclass(frozen=True)
class AdaptedBase:
    """A checkpoint and the adapter that makes another of it."""

    adapter: Adapter
    weights: Path | None
    """The adapter's tensors; None where no weights are wanted."""
    directory: Path
    """Of the base."""

    def tensors(self) -> Tensors:
        """Those of the ordinary checkpoint that both make, each made when it is asked for."""
        config = hub.read_config(self.directory)
        root = root_of_config(config, config_class_of(config).root)
        return merged_tensors(self.adapter, read_tensor_file(self.weights), read_tensors(self.directory), root)

    def config(self) -> dict[str, Any]:
        """Contents of the base's config.json, with the head that the adapter brings."""
        config = hub.read_config(self.directory)
        held = {} if self.weights is None else read_tensor_file(self.weights)
        return with_heads(config, held, config_class_of(config).architecture)


def adapted_base(
    source: str, directory: Path, *, cache_dir: str | None, token: str | None, weights: bool
) -> AdaptedBase | None:
    """The adapter in a directory with its base, which is downloaded if it is on the hub; None if there is no adapter.

    Args:
        source: what the directory was asked for as, for messages.
        directory: from `hub.resolve_model`.
        cache_dir, token: of the hub.
        weights: False leaves the weights of both where they are.

    Raises:
        InputError: the adapter is of a kind that is not implemented, or damaged; or its base cannot be had.
    """
    if not (directory / hub.ADAPTER_CONFIG).is_file():
        return None
    adapter = read_settings(source, read_json_object(directory / hub.ADAPTER_CONFIG))
    file = next((directory / name for name in hub.ADAPTER_WEIGHTS if (directory / name).is_file()), None)
    if weights and file is None:
        raise InputError(f"{source} has no weights: looked for {', '.join(hub.ADAPTER_WEIGHTS)}.")
    try:
        base = hub.resolve_model(
            adapter.base, cache_dir=cache_dir, revision=adapter.revision, token=token, weights=weights
        )
    except InputError as error:
        raise InputError(
            f"{source} is an adapter of {adapter.base} (base_model_name_or_path in its {hub.ADAPTER_CONFIG}), which "
            f"cannot be had: {error}"
        ) from error
    if (base / hub.ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{source} is an adapter of {adapter.base}, which is an adapter itself. Merge that into its own base with "
            f"PEFT (merge_and_unload, save_pretrained), and name the result in {hub.ADAPTER_CONFIG}."
        )
    has_own = (directory / "config.json").is_file()
    if has_own and _is_joint(directory) and not _is_joint(base):
        raise InputError(
            f"{source} is an adapter of an encoder and a decoder that were joined in its run, so no directory holds "
            "its base. Name the merged model: the output directory that the adapter's lies in."
        )
    return AdaptedBase(adapter, file if weights else None, base)


def _is_joint(directory: Path) -> bool:
    """Whether a model directory's config.json is that of an encoder with a decoder."""
    return hub.read_config(directory).get("model_type") == TRANSLATION_MODEL_TYPE
