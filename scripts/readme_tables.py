#!/usr/bin/env python3
"""Prints README.md's tables of flags and of tasks and its file tree, made from the code itself.

    python scripts/readme_tables.py                    print all three
    python scripts/readme_tables.py --write README.md  replace them between their markers
    python scripts/readme_tables.py --check README.md  exit 1 if the file's tables are not these

The markers are `<!-- flags:begin -->` and `<!-- flags:end -->`, and the same with `tasks` and `files`, each on a line
of its own.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from xtremes_jax.arguments.parse import FLAGS, GROUPS, Flag
from xtremes_jax.arguments.plan import FLAGS as PLAN_FLAGS
from xtremes_jax.tasks import TASKS


def flags_table() -> str:
    """One Markdown table for each group of flags: name, old names, default, meaning, whether scoring takes it."""
    parts = []
    titles = {group: group.capitalize() for group in GROUPS} | {"plan": "Of `xtremes_jax.plan` alone"}
    for group, title in titles.items():
        parts += [
            f"**{title}**",
            "",
            "| Flag | Default | Meaning | `evaluate` |",
            "|---|---|---|---|",
            *(_row(flag) for flag in (FLAGS | PLAN_FLAGS).values() if flag.group == group),
            "",
        ]
    return "\n".join(parts).rstrip()


def _row(flag: Flag) -> str:
    names = f"`--{flag.name}`" + "".join(f" (`--{old}`)" for old in flag.metadata["old"])
    words = " ".join(map(str, flag.default)) if isinstance(flag.default, tuple) else str(flag.default)
    default = f"`{words}`" if flag.default is not None and words else ""
    choices = f" One of {', '.join(flag.metadata['choices'])}." if flag.metadata["choices"] else ""
    cells = (names, default, flag.metadata["help"] + choices, "yes" if flag.metadata["scoring"] else "")
    # A bar would end the cell, even between backquotes.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def tasks_table() -> str:
    """A Markdown table of the tasks: config, head, target column, metrics, languages."""
    rows = ["| `--task` | Config | Kind | Target column | Metrics | Languages |", "|---|---|---|---|---|---|"]
    for task in TASKS.values():
        languages = " ".join(task.languages) if len(task.languages) <= 14 else f"{len(task.languages)} languages"
        rows.append(
            f"| `{task.name}` | `{task.dataset}.<language>` | {task.kind} | `{task.target_column}` "
            f"| {', '.join(task.metrics)} | {languages} |"
        )
    return "\n".join(rows)


def file_tree() -> str:
    """Every file of the package and the scripts, a line each, with the first sentence of its own documentation."""
    lines = ["```"]
    for folder in ("xtremes_jax", "scripts"):
        for path in sorted((ROOT / folder).rglob("*"), key=lambda path: (path.parent, path.is_dir(), path.name)):
            if path.suffix not in (".py", ".sh"):
                continue
            name = str(path.relative_to(ROOT))
            lines.append(f"{name:40} {_first_sentence(path)}")
    lines.append(f"{'tests/':40} mirrors the package; golden/ holds tensors that PyTorch made, and the scripts")
    return "\n".join([*lines, "```"])


def _first_sentence(path: Path) -> str:
    """The first paragraph of a file's docstring or leading comment, up to its first full stop."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        paragraph = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    else:
        paragraph = " ".join(line.lstrip("# ") for line in text.splitlines()[1:] if line.startswith("#"))
    return re.split(r"\.(?:\s+(?=[A-Z`])|$)", " ".join(paragraph.split()), maxsplit=1)[0]


def with_tables(text: str) -> str:
    """`text` with the tables in place of what stands between their markers.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in (("flags", flags_table()), ("tasks", tasks_table()), ("files", file_tree())):
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if begin not in text or end not in text:
            raise ValueError(f"The markers {begin.strip()} and {end} are missing.")
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}{table}\n{end}{rest.split(end, 1)[1]}"
    return text


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", type=Path, metavar="FILE")
    parser.add_argument("--write", type=Path, metavar="FILE")
    wanted = parser.parse_args()
    if wanted.check:
        text = wanted.check.read_text(encoding="utf-8")
        if with_tables(text) != text:
            print(f"{wanted.check} is out of date: run python scripts/readme_tables.py --write {wanted.check}")
            return 1
    elif wanted.write:
        wanted.write.write_text(with_tables(wanted.write.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(f"{tasks_table()}\n\n{flags_table()}\n\n{file_tree()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
