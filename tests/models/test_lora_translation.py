"""Low-rank factors in the encoder of a translation model, against PEFT. Needs torch and peft."""

import json

import jax
import numpy as np
import pytest
from models.translation_models import config_of, parameters, torch_inputs, torch_model

from xtremes_jax.models import (
    Lora,
    abstract_model,
    flatten_params,
    is_factor,
    merge,
    merge_factors,
    split_params,
    to_huggingface,
    unflatten_params,
)
from xtremes_jax.models.peft import to_peft
from xtremes_jax.models.weights import write_tensor_file

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA = Lora(2, 5.0)


@pytest.mark.parametrize("frozen", ["nothing", "decoder"])
def test_peft_translates_the_same(frozen, ragged_audio, rng, tmp_path):
    config = config_of("projected adapter")
    graphdef, shapes = split_params(abstract_model(config, lora=LORA))
    params = flatten_params(parameters(config, rng))
    base = {name: value + np.float32(0.1) for name, value in params.items()}
    for name, leaf in flatten_params(shapes).items():
        if is_factor(name):
            params[name] = (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
    new = ("encoder.adapter.", "enc_to_dec_proj.", *(() if frozen == "decoder" else ("decoder.",)))
    trained = [name for name in params if is_factor(name) or name.startswith(new) or ".encoder_attn" in name]
    params |= {name: base[name] for name in base if name not in trained}
    ordinary = to_huggingface(unflatten_params(merge_factors(params, LORA)), config)
    tensors, settings = to_peft(params, ordinary, config, LORA, trained, "base")
    write_tensor_file(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert "attention.q_proj" in settings["target_modules"]  # q_proj alone would be the decoder's too

    lengths = (3600, 2345, 1700)
    audio, labels = ragged_audio(rng, lengths), rng.integers(4, 31, (3, 5))
    run = jax.jit(lambda flat: merge(graphdef, unflatten_params(flat))(audio, np.array(lengths, np.int32), labels))
    ours = run(params).logits
    model = peft.PeftModel.from_pretrained(torch_model(config, unflatten_params(base)), tmp_path).eval()
    for unit in (model, model.merge_and_unload()):
        for row in range(3):
            inputs = torch_inputs(audio, lengths, [row])
            shifted = torch.tensor([[3, *labels[row, :-1]]])
            with torch.no_grad():
                theirs = unit(input_values=inputs.input_values, decoder_input_ids=shifted).logits[0]
            np.testing.assert_allclose(ours[row], theirs, atol=1e-4)
