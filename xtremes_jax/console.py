"""What a person sees while a run goes on: log lines, a progress bar, one line an evaluation, the table at the end."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from xtremes_jax.arguments import Arguments
from xtremes_jax.corpus import Corpus
from xtremes_jax.evaluation.metrics import bleu_groups
from xtremes_jax.evaluation.predict import ScoredSplit
from xtremes_jax.evaluation.report import results_table
from xtremes_jax.streams import STDERR, say
from xtremes_jax.tasks import TaskSpec
from xtremes_jax.training import processes

logger = logging.getLogger(__name__)

_MOST_LANGUAGES_ON_ONE_LINE = 8


class _AboveTheBar(logging.Handler):
    """Writes log lines so that they do not tear a progress bar; of several processes, with their numbers.

    Processes other than the first show errors alone: the course of a run, warnings included, is the same in all.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if processes.is_first() or record.levelno >= logging.ERROR:
            tqdm.write(signed(self.format(record)), file=STDERR)


def signed(text: str) -> str:
    """Text with the number of this process before it, where there are several."""
    return f"[process {processes.index()}] {text}" if processes.several() else text


def set_up(level: str) -> None:
    """Sends this package's log lines to standard error, from `level` on; "passive" is info.

    Other libraries' lines come from warnings on, but for what is no news here.
    """
    handler = _AboveTheBar()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    package = logging.getLogger("xtremes_jax")
    package.setLevel("INFO" if level == "passive" else level.upper())
    # Orbax and absl log every file they touch.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # The hub's client has a handler of its own beside this one.
    logging.getLogger("huggingface_hub").handlers.clear()
    # Models are JAX's here: of Transformers none is needed that PyTorch would have to be there for.
    logging.getLogger("transformers").addFilter(lambda line: "PyTorch was not found" not in line.getMessage())


class Bar:
    """The progress bar of training; with `hidden`, log lines in its place.

    Args:
        total: steps of the whole run.
        start: steps done before (a resumed run).
        hidden: show no bar (`--disable_tqdm`).
        silent: nor lines in its place.
    """

    def __init__(self, *, total: int, start: int, hidden: bool, silent: bool = False):
        self._hidden, self._total = hidden, total
        off = hidden or silent
        self._bar = tqdm(
            total=total, initial=start, unit="step", desc="train", disable=off, dynamic_ncols=True, mininterval=0.5,
            file=STDERR,
        )  # fmt: skip

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def show(self, step: int, epoch: float, values: dict[str, Any]) -> None:
        """Shows the numbers of a log line."""
        text = (
            f"loss {values['loss']:.4f}, lr {values['learning_rate']:.2e}, "
            f"{values['audio_seconds_per_second']:.0f} audio-s/s, padding {values['padding']:.0%}, "
            f"data wait {values['data_wait']:.0%}"
        )
        self._bar.set_postfix_str(text, refresh=False)
        if self._hidden:
            logger.info("step %d/%d, epoch %.2f: %s", step, self._total, epoch, text)

    def close(self) -> None:
        """Ends the bar's line."""
        self._bar.close()


@contextmanager
def split_bar(role: str, total: int, hidden: bool) -> Iterator[tqdm]:
    """The progress bar of scoring a split; it vanishes when done."""
    off = hidden or not processes.is_first()
    with tqdm(total=total, unit="batch", desc=role, disable=off, dynamic_ncols=True, leave=False, file=STDERR) as bar:
        yield bar


def show_evaluation(step: int, epoch: float, scored: ScoredSplit, task: TaskSpec) -> None:
    """One line: the averages, and the main metric of each language where these are few."""
    averages = scored.scores.average | scored.scores.groups
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in averages.items())
    main = task.metrics[0]
    languages = scored.scores.per_language
    parts = ""
    if 1 < len(languages) <= _MOST_LANGUAGES_ON_ONE_LINE:
        parts = f" ({', '.join(f'{language} {values[main]:.3f}' for language, values in languages.items())})"
    logger.info("step %d, epoch %.2f: eval loss %.4f, %s%s", step, epoch, scored.metrics["loss"], metrics, parts)


def show_results(results: dict[str, Any], arguments: Arguments, corpus: Corpus, directory: Path) -> None:
    """The table at the end of a run, on standard output: each split's scores by language, and where everything lies."""
    task = arguments.selection.task
    data = "synthetic speech of the demo corpus" if corpus.synthetic else arguments.data.dataset_name
    say(f"\n{task.name} on {data}")
    for role, title in (("eval", arguments.data.eval_split_name), ("predict", arguments.data.predict_split_name)):
        # Results may be those of an earlier run in this directory too, which had another split.
        if f"{role}_samples" not in results or role not in corpus.splits:
            continue
        split = corpus.splits[role]
        rows = [["average", *[results[f"{role}_{metric}"] for metric in task.metrics]]]
        for language in sorted(set(split.languages)):
            values = [results.get(f"{role}_{metric}_{language}") for metric in task.metrics]
            if None not in values:
                rows.append([language, *values])
        if len(rows) == 2:
            rows = rows[:1]
        keys = f"{role}_keys" in results
        what = f"queries among {results[f'{role}_keys']} keys" if keys else "clips"
        say(f"\n{title} split, {results[f'{role}_samples']} {what}")
        say(results_table(["language", *task.metrics], rows))
        if keys:
            say(f"By chance, p_at_1 is {results[f'{role}_chance_p_at_1']:.4f}")
        for line in _group_lines(results, role, split.languages):
            say(line)
    what = "The model, results and predictions" if arguments.training.do_train else "Results and predictions"
    say(f"\n{what} lie in {directory}")


def _group_lines(results: dict[str, Any], role: str, languages: Sequence[str]) -> Iterator[str]:
    """One line for each group of translation's languages, and which of its languages the split does not hold."""
    names = {language: f"{role}_bleu_{language}" for language in set(languages)}
    scores = {language: {"bleu": results[name]} for language, name in names.items() if results.get(name) is not None}
    groups, missing = bleu_groups(scores)
    for name, value in groups.items():
        without = f" (without {' '.join(missing[name])})" if name in missing else ""
        yield f"{name.replace('_', ', ')} resource languages{without}: {value:.2f}"
