"""Names of what a run writes into its output directory."""

CHECKPOINTS = "checkpoints"
BATCHES = "batches.jsonl"
METRICS = "metrics.jsonl"
NONFINITE = "nonfinite.jsonl"
RECORD = "run.json"
SKIPPED = "skipped.jsonl"
TENSORBOARD = "runs"
