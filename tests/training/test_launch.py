"""Who is process 0, how many there are, and which one this is: from flags and from what clusters set."""

import jax
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.training.launch import Launch, find_launch, join

SLURM = {
    "SLURM_JOB_ID": "4100", "SLURM_STEP_NODELIST": "gpu[07-09,12],cpu3", "SLURM_NTASKS": "8", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "4",
}  # fmt: skip


def test_a_run_alone_joins_nobody():
    assert find_launch(None, None, None, environment={}) is None
    assert find_launch(None, 1, None, environment=SLURM) is None
    assert find_launch(None, None, None, environment=SLURM | {"SLURM_NTASKS": "1"}) is None
    assert find_launch(None, None, None, environment={"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}) is None  # no srun
    assert find_launch(None, None, None, environment={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    alone = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1"}
    assert find_launch(None, None, None, environment=alone) is None


def test_flags_count_before_the_environment():
    assert find_launch("10.0.0.1:99", 4, 3, environment=SLURM) == Launch("10.0.0.1:99", 4, 3)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-09,12],cpu3", "gpu07"), ("gpu[7,12]", "gpu7"), ("gpu7,gpu9", "gpu7"), ("a-1.cluster", "a-1.cluster")],
)
def test_slurm_starts_one_process_a_gpu(nodes, first):
    found = find_launch(None, None, None, environment=SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert found == Launch(f"{first}:61444", 8, 5, (1,))


def test_slurm_starts_one_process_a_node_which_has_all_its_gpus():
    found = find_launch(None, None, None, environment=SLURM | {"SLURM_STEP_NUM_NODES": "8"})
    assert found == Launch("gpu07:61444", 8, 5, None)


def test_two_steps_of_a_slurm_job_do_not_meet():
    addresses = {
        find_launch(None, None, None, environment=SLURM | {"SLURM_STEP_ID": step}).coordinator_address
        for step in ("0", "1", "2")
    }
    assert addresses == {"gpu07:61444", "gpu07:61445", "gpu07:61446"}


def test_slurm_has_shown_each_process_one_gpu_alone():
    found = find_launch(None, None, None, environment=SLURM | {"CUDA_VISIBLE_DEVICES": "3"})
    assert found.local_device_ids is None
    found = find_launch(None, None, None, environment=SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert found.local_device_ids == (1,)


def test_variables_of_jax_and_an_indexed_job():
    said = {"JAX_COORDINATOR_ADDRESS": "trainer-0.trainer:8476", "JAX_NUM_PROCESSES": "4"}
    expected = Launch("trainer-0.trainer:8476", 4, 2)
    assert find_launch(None, None, None, environment=said | {"JAX_PROCESS_ID": "2"}) == expected
    assert find_launch(None, None, None, environment=said | {"JOB_COMPLETION_INDEX": "2"}) == expected


def test_jax_is_left_to_find_out():
    job = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    assert find_launch(None, None, None, environment=job) == Launch()
    assert find_launch(None, None, None, environment={"OMPI_COMM_WORLD_SIZE": "2"}) == Launch()
    assert find_launch(None, None, None, environment={"OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert find_launch(None, None, None, environment={}, on_tpu=True) == Launch(may_be_alone=True)
    assert find_launch(None, None, None, environment=job, on_tpu=True) == Launch()


def test_a_tpu_host_that_knows_of_no_others_is_alone(monkeypatch):
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", *SLURM):
        monkeypatch.delenv(name, raising=False)
    join(Launch(may_be_alone=True))
    assert not jax.distributed.is_initialized()
    with pytest.raises(InputError, match="A run of one process alone is --num_processes 1"):
        join(Launch())


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("a:1", None, 0), {}, "the command line lacks --num_processes"),
        ((None, 2, None), {}, "lacks --coordinator_address and --process_id"),
        (("a", 2, 0), {}, "--coordinator_address a is no host and port"),
        (("a:1", 2, 2), {}, "--process_id 2 is not below --num_processes 2"),
        ((None,) * 3, {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "x", "JAX_PROCESS_ID": "0"}, "'x' is no"),
        ((None,) * 3, {"JAX_COORDINATOR_ADDRESS": "a:1"}, "the environment lacks JAX_NUM_PROCESSES"),
        ((None,) * 3, SLURM | {"SLURM_STEP_NODELIST": "["}, "names no node"),
    ],
)
def test_what_is_half_said_is_refused(flags, environment, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        find_launch(*flags, environment=environment)
