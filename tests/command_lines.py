"""Command lines of training that tests of flags share."""

import shlex

from xtremes_jax.arguments import parse_arguments

BASE = "--model_name_or_path some/model --output_dir out --do_train"


def parse(extra: str = "", config: str = "mls.all"):
    """The arguments of a short command line with some more."""
    return parse_arguments(shlex.split(f"{BASE} --dataset_config_name {config} {extra}"))
