"""A run whose checkpoints lie in a bucket, with the real clients against a local service."""

from bucket import local_bucket
from corpora import write_corpus
from runs import flags, rows, run_elsewhere


def test_a_run_keeps_its_checkpoints_in_a_bucket_and_goes_on_from_a_sound_one(tmp_path):
    import gcsfs  # after `bucket`, which has set how it looks for things

    corpus = write_corpus(tmp_path / "corpus")
    settings = dict(do_eval=None, save_steps=2, hidden_dropout=0.1, save_total_limit=2, max_buckets=1)
    with local_bucket() as variables:

        def run(name, steps, **changes):
            arguments = flags(corpus, tmp_path / name, "mls.all", max_steps=steps, **settings, **changes)
            done = run_elsewhere(arguments, **variables)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stderr

        kept = dict(checkpoint_dir="gs://bucket/runs/one", lr_scheduler_type="constant")
        run("first", 6, **kept)
        bucket = gcsfs.GCSFileSystem(
            endpoint_url=variables["STORAGE_EMULATOR_HOST"], token="anon", use_listings_cache=False
        )
        assert sorted(name.rpartition("/")[2] for name in bucket.ls("bucket/runs/one")) == ["4", "6"]
        assert not (tmp_path / "first" / "checkpoints").exists()

        # A byte of the newest is flipped, and the machine with the output directory is gone.
        (largest, _), *_ = sorted(
            bucket.find("bucket/runs/one/6/state", detail=True).items(), key=lambda item: -item[1]["size"]
        )
        content = bytearray(bucket.cat_file(largest))
        content[len(content) // 2] ^= 1
        bucket.pipe_file(largest, bytes(content))
        said = run("second", 8, **kept)
        assert "The checkpoint gs://bucket/runs/one/6 is damaged: state/" in said
        assert "Going on from step 4 (gs://bucket/runs/one/4)" in said
        assert [row["step"] for row in rows(tmp_path / "second" / "batches.jsonl")] == [5, 6, 7, 8]
        assert rows(tmp_path / "second" / "batches.jsonl")[:2] == rows(tmp_path / "first" / "batches.jsonl")[4:]
        lines = [rows(tmp_path / name / "metrics.jsonl") for name in ("second", "first")]
        assert [row["loss"] for row in lines[0][:2]] == [row["loss"] for row in lines[1][4:]]
