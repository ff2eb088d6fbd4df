"""What the training loop measures: between two log lines, over the run, and across a stop."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from xtremes_jax.training.step import StepMetrics


@dataclass
class Meter:
    """What has happened since the last log line."""

    pending: list[StepMetrics] = field(default_factory=list)
    """Of steps that may not be done yet: scalars on the devices."""
    fetched: list[StepMetrics] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    audio_seconds: float = 0.0
    padded_seconds: float = 0.0
    wait_seconds: float = 0.0

    @classmethod
    def going_on(cls, noted: dict[str, Any]) -> "Meter":
        """What `note` has written down, with the clock going on from there."""
        scalars = [StepMetrics(*map(np.asarray, values)) for values in noted["metrics"]]
        return cls(
            fetched=scalars,
            started=time.perf_counter() - noted["elapsed"],
            **{name: noted[name] for name in ("audio_seconds", "padded_seconds", "wait_seconds")},
        )

    def note(self) -> dict[str, Any]:
        """All of it as JSON holds it, for a checkpoint between two log lines. Waits for the last step to finish."""
        self.fetch()
        return {
            "metrics": [[value.item() for value in metrics] for metrics in self.fetched],
            "elapsed": time.perf_counter() - self.started,
            "audio_seconds": self.audio_seconds,
            "padded_seconds": self.padded_seconds,
            "wait_seconds": self.wait_seconds,
        }

    def add(self, metrics: StepMetrics, loaded) -> None:
        """Counts a step; its scalars stay on the devices."""
        self.pending.append(metrics)
        self.audio_seconds += loaded.audio_seconds
        self.padded_seconds += loaded.padded_seconds
        self.wait_seconds += loaded.data_wait_s

    def fetch(self) -> None:
        """Brings the scalars to the host, which waits for the last step to finish."""
        self.fetched += [StepMetrics(*map(np.asarray, metrics)) for metrics in jax.device_get(self.pending)]
        self.pending = []

    @property
    def losses(self) -> list[float]:
        """Those that are finite. Float16 overflows now and then, mostly in the gradients and not in the loss."""
        return [float(metrics.loss) for metrics in self.fetched if np.isfinite(metrics.loss)]

    def summary(self) -> dict[str, float]:
        """The log line of these steps."""
        self.fetch()
        elapsed = time.perf_counter() - self.started
        norms = [float(metrics.gradient_norm) for metrics in self.fetched if metrics.finite]
        return {
            "loss": float(np.mean(self.losses)) if self.losses else math.nan,
            "learning_rate": float(self.fetched[-1].learning_rate),
            "grad_norm": float(np.mean(norms)) if norms else math.nan,
            "skipped_updates": len(self.fetched) - len(norms),
            "audio_seconds_per_second": self.audio_seconds / elapsed,
            "seconds_per_step": elapsed / len(self.fetched),
            "padding": 1.0 - self.audio_seconds / self.padded_seconds if self.padded_seconds else 0.0,
            "data_wait": self.wait_seconds / elapsed,
        }


@dataclass(frozen=True)
class Note:
    """What a checkpoint says of the loop beside the state, so that a run goes on as if it had not stopped."""

    evaluation_owed: bool = False
    """An evaluation was due at this step and was not made, as a signal or an error came first."""
    unlogged: dict[str, Any] | None = None
    """Of the steps since the last log line: `Meter.note`."""
    loss_sum: float = 0.0
    logged_steps: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the last log lines."""


@dataclass
class FitReport:
    """What a loop has measured that has ended or was stopped. Times are wall-clock seconds."""

    steps: int = 0
    clips: int = 0
    audio_seconds: float = 0.0
    padded_seconds: float = 0.0
    wait_seconds: float = 0.0
    loss_sum: float = 0.0
    logged_steps: int = 0
    runtime: float = 0.0
    compile_seconds: float = 0.0
    """Spent on waiting for the programs of shapes that had not come before: tracing and compiling them."""
    pause_seconds: float = 0.0
    """Spent on evaluation and on handing checkpoints over."""
    first_step_seconds: float | None = None
    """From the beginning to the end of the first step, which waits for the first batch and compiles."""

    def count(self, loaded) -> None:
        """Adds a batch."""
        self.steps += 1
        self.clips += loaded.clips
        self.audio_seconds += loaded.audio_seconds
        self.padded_seconds += loaded.padded_seconds
        self.wait_seconds += loaded.data_wait_s

    def compiled(self, seconds: float) -> float:
        """Adds time spent on compiling, and returns it."""
        self.compile_seconds += seconds
        return seconds

    def paused(self, seconds: float) -> float:
        """Adds time spent on evaluating and saving, and returns it."""
        self.pause_seconds += seconds
        return seconds

    @property
    def steady_seconds(self) -> float:
        """Seconds of training proper: neither compiling nor pausing."""
        return max(self.runtime - self.compile_seconds - self.pause_seconds, 1e-9)
