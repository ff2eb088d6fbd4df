"""Checkpoints of several real processes: what happens where one of them cannot write, or sees another directory."""

import textwrap

from several import talk

SAVING = """
    import numpy as np, jax, optax
    from types import SimpleNamespace
    from xtremes_jax import command
    from xtremes_jax.training.checkpoint import Checkpoints
    from xtremes_jax.training.sharding import make_mesh, place, array_sharding
    from xtremes_jax.training.state import create_state

    def state(mesh):
        values = np.random.default_rng(0).standard_normal((400, 400), np.float32)
        kernel = place(values, array_sharding(mesh, values.shape))
        with jax.set_mesh(mesh):
            return jax.jit(lambda kernel: create_state({"kernel": kernel}, {}, optax.sgd(0.1), scale_loss=True))(kernel)

    def main(run):
        arguments = SimpleNamespace(training=SimpleNamespace(
            log_level="info", use_cpu=True, coordinator_address=None, num_processes=1, process_id=None))
        command.leave(command.run_command(lambda argv: arguments, run, []))
"""


def saving(count: int, script: str):
    return talk(count, textwrap.dedent(SAVING) + textwrap.dedent(script))


def test_a_process_that_cannot_write_ends_the_run_at_once_with_its_words(tmp_path):
    """Without waiting for the others, which wait for it; and the checkpoint before stays."""
    company = saving(
        2,
        f"""
        import resource
        def run(arguments):
            mesh = make_mesh(2)
            checkpoints, agreement = Checkpoints({str(tmp_path)!r}, keep=1), processes.Agreement()
            checkpoints.save(1, state(mesh), {{}})
            checkpoints.wait()
            if processes.index() == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            checkpoints.save(2, state(mesh), {{}})
            for step in range(10**9):
                agreement(processes.Wishes())
                checkpoints.check()
                time.sleep(0.02)
        main(run)
        """,
    )
    first, second = company.wait(100)
    assert (first.status, second.status) == (2, 2), (first, second)
    assert f"[process 1] error: A checkpoint could not be written to {tmp_path}: " in second.output
    assert "File too large" in second.output and "The last complete checkpoint is that of step 1" in second.output
    assert "[process 0] Process 1 has ended the run: error: A checkpoint could not be written" in first.output
    assert (tmp_path / "1" / "state").is_dir()


def test_processes_that_see_other_checkpoints_are_told(tmp_path):
    company = saving(
        2,
        f"""
        from xtremes_jax.training import checkpoint
        checkpoint._SEEN_WITHIN_SECONDS = 1
        def run(arguments):
            folder = f"{tmp_path}/{{processes.index()}}"
            os.makedirs(folder + ("/7" if processes.index() == 0 else ""))
            Checkpoints(folder, create=False)
            processes.gather(None)
        main(run)
        """,
    )
    first, second = company.wait(100)
    assert (first.status, second.status) == (2, 2), (first, second)
    assert f"In {tmp_path}/1, process 1 sees checkpoints of the steps [], and process 0 of [7]." in second.output
