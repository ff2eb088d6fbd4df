"""A plan as it is printed: on made-up figures."""

import dataclasses
from types import SimpleNamespace

import pytest

from xtremes_jax.planning.cost import ProgramCost
from xtremes_jax.planning.report import Bucket, Found, Plan, Trial, as_text, assumptions
from xtremes_jax.planning.topology import GIB, GPUS, TPUS, Target

COST = ProgramCost(4 * GIB, 3 * GIB, None, 2e12, 1e9, 5e8, 7, 1.0)
REFUSED = ProgramCost(None, None, "no room", None, None, None, None, 1.0)


def bucket(role="train", cost=COST, step_seconds=0.5, **changes):
    made = Bucket(
        role=role, seconds=12.0, rows=8, micro_batches=1, labels=32, times=10, cost=cost, resident=GIB,
        memory=8 * GIB, step_seconds=step_seconds,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def plan_of(*buckets, chip=TPUS["v5e"], platform="tpu", devices=8, **changes):
    target = Target("made:up", platform, chip, [SimpleNamespace(process_index=0)] * devices)
    made = Plan(
        title="mls with tiny", target=target, mesh={"data": devices, "fsdp": 1}, precision="bfloat16",
        trainable=2**20, frozen=2**19, optimizer=2**21, buckets=buckets, steps_per_epoch=10, total_steps=25,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_times_are_those_of_all_batches():
    made = plan_of(bucket(), bucket(times=2, step_seconds=1.0), bucket("eval", times=4), bucket("frames", times=1))
    text = as_text(made)
    assert "An epoch: 10 steps, about 7.0 s. The run: 25 steps (2.5 epochs), about 17.5 s" in text
    assert "Scoring --eval_split_name once: about 2.0 s." in text
    assert "first epoch of --cache_frontend, besides: about 500 ms." in text and "DOES NOT FIT" not in text


@pytest.mark.parametrize(
    ("changes", "cell", "said"),
    [
        ({"resident": 5 * GIB}, "112% TOO MUCH", None),
        ({"cost": REFUSED, "step_seconds": None}, "too much", "XLA says: no room"),
        ({"cost": dataclasses.replace(REFUSED, needed=15 * GIB), "step_seconds": None}, "200% TOO MUCH", "no room"),
    ],
)
def test_what_does_not_fit_has_no_epoch_unless_xla_made_a_program(changes, cell, said):
    text = as_text(plan_of(bucket(), bucket("eval", **changes)))
    assert cell in text and "DOES NOT FIT: eval 12.00 s." in text and "An epoch:" in text
    assert said is None or said in text
    assert ("Scoring" in text) == ("cost" not in changes)
    assert ("An epoch:" in as_text(plan_of(bucket(**changes)))) == ("cost" not in changes)


def test_programs_are_told_where_they_are_counted():
    assert "programs" not in as_text(plan_of(bucket())).split("Assumed")[0]
    made = plan_of(bucket(programs=GIB))
    assert made.buckets[0].peak == 6 * GIB and "programs 1,024.0 MiB, memory 15.75 GiB" in as_text(made)


def test_micro_batches_are_shown():
    assert "8 in 4" in as_text(plan_of(bucket(micro_batches=4)))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Found("max_batch_seconds", 12345.64, 3, 12.0, (Trial(3, 1, True, 1.0),)), "12345.64, in 1 trials, and no la"),
        (Found("x", 0, 0, 12.0, (Trial(3, 1, False, 1.0),)), "No batch fits in the longest bucket (12.00 s)"),
        (Found("x", 3, 3, 12.0, (Trial(4, 1, False, 1.0), Trial(3, 1, True, 1.0))), "--x 3, in 2 trials."),
    ],
)
def test_the_largest_batch_is_told(found, said):
    assert said in as_text(plan_of(bucket(), found=found))


def test_a_trial_takes_the_larger_of_its_programs():
    trial = Trial.of(3, [bucket(), bucket(resident=2 * GIB)])
    assert trial == Trial(3, 6 * GIB, True, 2.0)
    assert Trial.of(3, [bucket(), bucket(cost=REFUSED)]) == Trial(3, None, False, 2.0)


def test_what_is_assumed_of_gpus():
    def of(count):
        return " ".join(assumptions(plan_of(bucket(), chip=GPUS["h100"], platform="gpu", devices=count)))

    assert "no fused attention" in of(8) and "inside a machine" not in of(8)
    assert "all 16 GPUs send at the rate of the links inside a machine" in of(16)
