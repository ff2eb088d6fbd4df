"""`python -m xtremes_jax.score RUN_DIR...`: gathers finished runs into the XTREME-S table beside published results."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.benchmark import (
    COUNTED,
    PUBLISHED,
    TaskScore,
    gather,
    own_average,
    published_average,
)
from xtremes_jax.evaluation.metrics import bleu_groups
from xtremes_jax.run_record import read_run
from xtremes_jax.streams import say

_SPECIAL = re.compile(r"[\\|*`<\[]")
"""What Markdown would obey: languages are called as their data call them."""
_METRIC_NAMES = {"wer": "WER", "cer": "CER", "bleu": "BLEU", "accuracy": "accuracy", "f1": "macro-F1"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 0, or 2 for input that cannot be used (said in a sentence)."""
    parser = argparse.ArgumentParser(
        prog="python -m xtremes_jax.score",
        description="Gathers finished runs into the XTREME-S table, with the official average if all tasks are there.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="output directory of xtremes_jax.train or .evaluate")
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to print it (default: table)")
    arguments = parser.parse_args(argv)
    try:
        rows = gather([read_run(directory) for directory in dict.fromkeys(arguments.runs)])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(FORMATS[arguments.format](rows))
    return 0


def as_table(rows: Sequence[TaskScore]) -> str:
    """Plain text for a terminal: what matters most comes last, where it is seen."""
    parts = [f"{title}\n{_text_table(header, body)}" for title, header, body in _breakdowns(rows)]
    return "\n\n".join([*parts, f"XTREME-S\n{_text_table(*_summary(rows))}", _footnotes(), _verdict(rows)])


def as_markdown(rows: Sequence[TaskScore]) -> str:
    """Markdown for an issue or a README."""
    parts = ["# XTREME-S", _markdown_table(*_summary(rows)), _verdict(rows)]
    for title, header, body in _breakdowns(rows):
        parts.append(f"## {title}\n\n{_markdown_table(header, body)}")
    return "\n\n".join([*parts, _footnotes()])


def as_json(rows: Sequence[TaskScore]) -> str:
    """One JSON object for a program; all scores in points."""
    tasks = {
        row.task: {
            "metric": row.metric,
            "counts": row.task in COUNTED,
            "missing": not row.points,
            "score": row.points.get(row.metric),
            "scores": dict(row.points),
            "per_language": {name: dict(values) for name, values in row.per_language.items()},
            "missing_languages": list(row.missing_languages),
            "marks": list(row.marks),
            "runs": list(row.sources),
        }
        for row in rows
    }
    value: dict[str, Any] = {
        "average": own_average(rows),
        "synthetic": any(row.synthetic for row in rows),
        "partial": _is_partial(rows),
        "tasks": tasks,
        "published": [
            {
                "name": row.name,
                "average": published_average(row),
                "scores": {task: dict(values) for task, values in row.scores.items()},
                "notes": dict(row.notes),
            }
            for row in PUBLISHED
        ],
    }
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


FORMATS: dict[str, Callable[[Sequence[TaskScore]], str]] = {
    "table": as_table,
    "json": as_json,
    "markdown": as_markdown,
}
"""Value of `--format` -> what prints the rows."""


def _summary(rows: Sequence[TaskScore]) -> tuple[list[str], list[list[str]]]:
    header = ["task", "metric", "yours", *(row.name for row in PUBLISHED), "remarks"]
    body = []
    for row in rows:
        published = [_published_cell(other.scores.get(row.task, {}).get(row.metric), row.task, other.notes)
                     for other in PUBLISHED]  # fmt: skip
        remarks = list(row.marks) if row.points else ["no run" if row.task in COUNTED else "no run; does not count"]
        if row.points and row.task not in COUNTED:
            remarks.append("does not count")
        own = _figure(row.points[row.metric]) if row.points else "missing"
        body.append([row.task, _metric_name(row.metric), own, *published, "; ".join(remarks)])
    average = own_average(rows)
    remarks = _average_marks(rows) if average is not None else []
    body.append(
        ["average", "", "none" if average is None else _figure(average),
         *(_figure(published_average(row)) for row in PUBLISHED), "; ".join(remarks)]
    )  # fmt: skip
    return header, body


def _average_marks(rows: Sequence[TaskScore]) -> list[str]:
    counted = [row for row in rows if row.task in COUNTED]
    marks = ["SYNTHETIC speech"] if any(row.synthetic for row in counted) else []
    return marks + (["not measured as the benchmark does"] if _is_partial(rows) else [])


def _is_partial(rows: Sequence[TaskScore]) -> bool:
    return any(row.partial for row in rows if row.task in COUNTED)


def _verdict(rows: Sequence[TaskScore]) -> str:
    missing = [row.task for row in rows if row.task in COUNTED and not row.points]
    if missing:
        return f"No average: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
    marks = _average_marks(rows)
    text = f"XTREME-S average: {own_average(rows):.1f}"
    if not marks:
        return text
    return f"{text} ({', '.join(marks)}: not comparable with the published rows)"


def _breakdowns(rows: Sequence[TaskScore]) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table of languages for each task that has scores by language."""
    tables = []
    for row in rows:
        if not row.per_language:
            continue
        metrics = [row.metric, *(name for name in row.points if name != row.metric and not name.startswith("bleu"))]
        header = ["language", *map(_metric_name, metrics)]
        body = [
            [name, *(_figure(values.get(metric)) for metric in metrics)] for name, values in row.per_language.items()
        ]
        if row.metric == "bleu":
            body += _group_rows(row)
        if row.missing_languages:
            body.append([f"not scored: {len(row.missing_languages)} languages", *[""] * len(metrics)])
        tables.append((f"{row.task} by language", header, body))
    return tables


def _group_rows(row: TaskScore) -> list[list[str]]:
    groups, missing = bleu_groups(row.per_language)
    lines = []
    for name, value in groups.items():
        without = f" (without {' '.join(missing[name])})" if name in missing else ""
        lines.append([f"{name.removeprefix('bleu_')} resource{without}", _figure(value)])
    return lines


def _footnotes() -> str:
    notes = [f"{row.name}, {task}: {note}" for row in PUBLISHED for task, note in row.notes.items()]
    return (
        "All figures in points. Average = 0.4 (100 - mean of the error rates of fleurs-asr, mls and voxpopuli) "
        "+ 0.4 BLEU + 0.2 (mean of the two accuracies).\n* " + "; ".join(notes) + "."
    )


def _published_cell(value: float | None, task: str, notes: Any) -> str:
    return _figure(value) + ("*" if task in notes else "")


def _metric_name(metric: str) -> str:
    return _METRIC_NAMES.get(metric, metric)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _text_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[place]) for line in [header, *body]) for place in range(len(header))]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if _is_figure(cell) else cell.ljust(width)
            for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _is_figure(cell: str) -> bool:
    return cell == "-" or cell.rstrip("*").replace(".", "", 1).isdigit()


def _markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(_SPECIAL.sub(r"\\\g<0>", cell) for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
