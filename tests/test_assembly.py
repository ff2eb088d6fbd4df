"""A network of shapes, as a plan has it, is the network that a run puts on its devices."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from xtremes_jax.architecture import model_config
from xtremes_jax.arguments import parse_arguments
from xtremes_jax.assembly import _new_parts, assemble, outline
from xtremes_jax.models import DECODER_PRESETS, PRESETS
from xtremes_jax.optimization import make_optimization
from xtremes_jax.planned_corpus import planned_corpus
from xtremes_jax.starting import DecoderStart, StartingPoint, configure_translator, starting_point
from xtremes_jax.training.sharding import make_mesh


@pytest.mark.parametrize(
    "flags",
    [
        ["--task", "mls"],
        ["--task", "minds14", "--freeze_feature_encoder", "False", "--use_weighted_layer_sum"],
        ["--task", "covost2", "--decoder_config_name", "tiny", "--add_adapter", "--freeze_decoder"],
        ["--task", "fleurs-retrieval", "--bf16"],
        ["--task", "fleurs-asr", "--freeze_encoder_steps", "3"],
    ],
    ids=lambda flags: flags[1],
)
def test_shapes_stand_for_the_parameters_of_the_run(flags):
    arguments = parse_arguments(["--config_name", "tiny", "--output_dir", "x", "--do_train", *flags])
    start = starting_point(arguments.model, translation="covost2" in flags, weights=False)
    corpus = planned_corpus(arguments, start, ["1"], 1)
    config = model_config(arguments, start, corpus)
    shapes, real = outline(arguments, start, corpus, config, make_mesh()), assemble(arguments, start, corpus, config)
    for outlined, placed in ((shapes.trainable, real.trainable), (shapes.frozen, real.frozen)):
        assert {name: (a.shape, a.dtype, a.sharding) for name, a in outlined.items()} == {
            name: (a.shape, a.dtype, a.sharding) for name, a in placed.items()
        }
        assert not any(isinstance(leaf, jax.Array) for leaf in outlined.values())
    assert bool(shapes.frozen) == (flags[1] != "minds14")
    assert (shapes.graphdef, shapes.objective, shapes.generation) == (real.graphdef, real.objective, real.generation)
    assert (
        shapes.late
        == real.late
        == {name for name in shapes.trainable if "--freeze_encoder_steps" in flags and name.startswith("encoder.")}
    )


@pytest.mark.parametrize("targets", [(), ("v_proj",)])
def test_a_plan_counts_the_moments_of_what_is_trained(targets, tmp_path):
    """Without the weights of the checkpoint."""
    shape = PRESETS["tiny"]
    (tmp_path / "config.json").write_text(json.dumps(shape.to_huggingface()))
    flags = ["--task", "minds14", "--lora_rank", "3", *(["--lora_targets", *targets] if targets else [])]
    arguments = parse_arguments(["--model_name_or_path", str(tmp_path), "--output_dir", "x", "--do_train", *flags])
    start = starting_point(arguments.model, weights=False)
    corpus = planned_corpus(arguments, start, ["1"], 1)
    config = model_config(arguments, start, corpus)
    network = outline(arguments, start, corpus, config, make_mesh())
    width, wide, labels = shape.hidden_size, shape.intermediate_size, len(corpus.label_names)
    head = (width + 1) * shape.classifier_proj_size + (shape.classifier_proj_size + 1) * labels
    of_layer = 2 * width if targets else 4 * 2 * width + 2 * (width + wide)
    count = 3 * shape.num_hidden_layers * of_layer + head
    assert sum(leaf.size for leaf in network.trainable.values()) == count
    assert make_optimization(arguments, network, 10).optimizer_bytes == 2 * 4 * count + 2 * 4


@pytest.mark.parametrize("held", [None, 6])
@pytest.mark.parametrize("frozen", ["--freeze_encoder", "--lora_rank"])
def test_adapters_of_a_language_are_trained_where_they_are_new(frozen, held, tmp_path):
    """In an encoder that else stays as it was: they were never trained."""
    shape = dataclasses.replace(PRESETS["tiny"], do_stable_layer_norm=True, adapter_attn_dim=held)
    (tmp_path / "config.json").write_text(json.dumps(shape.to_huggingface()))
    flags = ["--task", "minds14", "--adapter_attn_dim", "6", frozen, *(["2"] if frozen == "--lora_rank" else [])]
    arguments = parse_arguments(["--model_name_or_path", str(tmp_path), "--output_dir", "x", "--do_train", *flags])
    start = starting_point(arguments.model, weights=False, trains=True)
    corpus = planned_corpus(arguments, start, ["1"], 1)
    config = model_config(arguments, start, corpus)
    of_report = [f"wav2vec2.encoder.layers.{layer}.adapter_layer.norm.weight" for layer in (0, 1)]
    for missing in (None, of_report if held is None else ()):
        network = outline(arguments, start, corpus, config, make_mesh(), missing)
        place = network.trainable if held is None else network.frozen
        adapters = {name for name in place if ".adapter_layer." in name and "lora" not in name}
        assert len(adapters) == 6 and not network.late
        assert "encoder.encoder.layers.attention.q_proj.kernel" in network.frozen


def joined(*, adapter: bool, pretrained: bool = True) -> tuple:
    """A pretrained (or random) encoder and a pretrained decoder, not read, with an adapter between them."""
    encoder = dataclasses.replace(PRESETS["tiny"], add_adapter=adapter).to_huggingface()
    decoder = DECODER_PRESETS["tiny"].to_huggingface() | {"decoder_start_token_id": 2}
    start = StartingPoint("encoder", Path("encoder") if pretrained else None, encoder, {})
    start = dataclasses.replace(start, decoder=DecoderStart("decoder", Path("decoder"), decoder, None))
    return start, configure_translator(start, {"add_adapter": True}, {})


def test_an_adapter_that_a_checkpoint_lacks_is_told_by_its_configuration():
    assert _new_parts(*joined(adapter=False)) == ("encoder.adapter.",)
    assert _new_parts(*joined(adapter=True)) == ()
    assert _new_parts(*joined(adapter=False, pretrained=False)) == ()
