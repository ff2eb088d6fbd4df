"""Adapters that others have made: what of them is read, and what is refused by name."""

import json

import numpy as np
import pytest
from models.family_models import variant
from safetensors.numpy import save_file

from xtremes_jax import load_model
from xtremes_jax.errors import InputError
from xtremes_jax.models import build_model, split_params, to_huggingface

SETTINGS = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none", "use_dora": False,
    "rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True, "megatron_core": "megatron.core",
    "qalora_group_size": 16, "modules_to_save": None,
}  # fmt: skip
STEM = "base_model.model.hubert.encoder.layers.1.attention.q_proj"


@pytest.fixture
def make(tmp_path):
    """`make(settings, tensors)`: an adapter of a base beside it; None drops a setting or a tensor."""
    config = variant("hubert-large", "classification")
    base = to_huggingface(split_params(build_model(config, seed=1))[1], config)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config.to_huggingface()))
    save_file(base, tmp_path / "base" / "model.safetensors")
    width = config.hidden_size

    def write(settings=None, tensors=None):
        folder = tmp_path / "adapter"
        folder.mkdir()
        held = {f"{STEM}.lora_A.weight": np.ones((2, width), np.float32),
                f"{STEM}.lora_B.weight": np.ones((width, 2), np.float32)} | (tensors or {})  # fmt: skip
        save_file({name: value for name, value in held.items() if value is not None},
                  folder / "adapter_model.safetensors")  # fmt: skip
        content = SETTINGS | {"base_model_name_or_path": str(tmp_path / "base")} | (settings or {})
        (folder / "adapter_config.json").write_text(json.dumps(content))
        return folder

    return write


def test_a_base_without_a_root_in_its_names(make, tmp_path):
    """As the files of a model without a head: names in them lack what the adapter's have before them."""
    folder = make()
    whole = load_model(folder)
    kernel = np.asarray(whole.params["encoder"]["encoder"]["layers"]["attention"]["q_proj"]["kernel"])
    plain = np.asarray(
        load_model(tmp_path / "base").params["encoder"]["encoder"]["layers"]["attention"]["q_proj"]["kernel"]
    )
    np.testing.assert_allclose(kernel[1] - plain[1], 2 * 2.0, atol=1e-6)
    np.testing.assert_array_equal(kernel[0], plain[0])
    from safetensors.numpy import load_file

    held = load_file(tmp_path / "base" / "model.safetensors")
    save_file({name.removeprefix("hubert."): value for name, value in held.items()},
              tmp_path / "base" / "model.safetensors")  # fmt: skip
    again = load_model(folder)
    np.testing.assert_array_equal(again.params["encoder"]["encoder"]["layers"]["attention"]["q_proj"]["kernel"], kernel)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'; only LORA"),
        ({"use_dora": True}, "use_dora True; that is not implemented"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'; it changes the base's own"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"something_new": {"a": 1}}, "something_new"),
        ({"r": 0}, "r 0; a rank is"),
        ({"r": "2"}, "r '2'; a rank is"),
        ({"r": 3}, "rank 3: they do not belong together"),
        ({"lora_alpha": "much"}, "lora_alpha 'much'"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan, which is no number up to"),
        ({"lora_alpha": 10**400}, "lora_alpha 10.*, which is no number up to"),
        ({"use_rslora": "false"}, "use_rslora 'false'; it is either true or false"),
        ({"base_model_name_or_path": "~\0a"}, "so nobody knows which model"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path None, so nobody knows"),
        ({"base_model_name_or_path": "/absent"}, "is an adapter of /absent .* cannot be had: /absent does not exist"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_settings_that_are_refused(make, settings, words):
    with pytest.raises(InputError, match=words):
        load_model(make(settings))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{STEM}.lora_B.weight": None}, "lora_A.weight without .*lora_B.weight"),
        ({f"{STEM}.lora_A.weight": np.ones((2, 5), np.float32)}, "do not belong together"),
        ({"lm_head.weight": np.ones((2, 5), np.float32)}, "names begin with base_model.model."),
        ({f"{STEM}.lora_magnitude_vector": np.ones(3, np.float32)}, "no factor of a linear map"),
        ({"base_model.model.hubert.fc.weight": np.ones((2, 2), np.float32)}, "no place for: hubert.fc.weight"),
        ({f"{STEM}.weight": np.ones((2, 2), np.float32)}, "q_proj.* and .*q_proj.*, which are one tensor of its base"),
        (
            {
                f"base_model.model.hubert.feature_extractor.conv_layers.1.conv.lora_{end}.weight": np.ones(
                    (2, 2, 2), np.float32
                )
                for end in "AB"
            },
            "adapts hubert.feature_extractor.conv_layers.1.conv, .* only factors of linear maps can be read",
        ),
        (
            {f"base_model.model.hubert.fc.lora_{end}.weight": np.ones((2, 2), np.float32) for end in "AB"},
            "adapts hubert.fc, which its base .* does not hold",
        ),
    ],
    ids=["half", "shape", "prefix", "dora", "unknown", "twice", "convolution", "absent"],
)
def test_tensors_that_are_refused(make, tensors, words):
    with pytest.raises(InputError, match=words):
        load_model(make(None, tensors))


@pytest.mark.parametrize("shape", [(), (5,), (10**9, 0)], ids=str)
def test_a_head_that_is_no_matrix_is_refused(make, shape):
    """The last one is a billion classes in no bytes."""
    with pytest.raises(InputError, match="classifier.weight has shape .*, which is that of no head"):
        load_model(make(None, {"base_model.model.classifier.weight": np.zeros(shape, np.float32)}))


def test_names_of_classes_that_are_none_are_made_anew(make, tmp_path):
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"id2label": 5}))
    head = {"classifier.weight": np.ones((3, config["classifier_proj_size"]), np.float32),
            "classifier.bias": np.ones(3, np.float32)}  # fmt: skip
    folder = make(None, {f"base_model.model.{name}": value for name, value in head.items()})
    assert load_model(folder).label_names == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_an_adapter_of_two_halves_that_were_joined_in_its_run(make):
    folder = make()
    (folder / "config.json").write_text(json.dumps({"model_type": "speech-encoder-decoder"}))
    with pytest.raises(InputError, match="no directory holds its base. Name the merged model"):
        load_model(folder)


def test_files_that_are_absent_or_adapters_of_adapters(make, tmp_path):
    folder = make()
    (tmp_path / "base" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="which is an adapter itself"):
        load_model(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights: looked for adapter_model.safetensors, adapter_model.bin"):
        load_model(folder)
