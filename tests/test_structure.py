"""The house rules that a program can check: direction of imports, no torch at run time, tables that are current."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from xtremes_jax.arguments.parse import FLAGS
from xtremes_jax.arguments.plan import FLAGS as PLAN_FLAGS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "xtremes_jax"

MAY_IMPORT = {
    "batch": set(),
    "errors": set(),
    "small_files": set(),
    "processors": set(),
    "streams": set(),
    "tasks": {"errors"},
    "arguments": {"errors", "small_files", "tasks"},
    "models": {"errors", "small_files", "batch"},
    "data": {"errors", "small_files", "batch", "processors", "streams", "tasks", "arguments"},
    "training": {"errors", "batch", "processors", "models"},
    "evaluation": {"errors", "batch", "tasks"},
    "planning": {"errors", "tasks"},
    "feature_extractors": {"errors", "batch", "models"},
    "nested_vocabulary": {"errors", "models"},
    "hub": {"errors", "batch", "feature_extractors", "models", "nested_vocabulary"},
    "upload": {"errors", "hub"},
    "model_card": {"hub"},
}
"""Room (or file) -> what it may import of this package besides itself. Entry points, not named here, import what they
need; nothing that is named here imports an entry point."""


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "xtremes_jax"}
    return names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room):
    folder = PACKAGE / room
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]
    assert files
    for file in files:
        ours = {room_of(name) for name in imports_of(file) if name.startswith("xtremes_jax")} - {"", room}
        assert ours <= MAY_IMPORT[room], f"{file.relative_to(ROOT)} imports {sorted(ours - MAY_IMPORT[room])}"


def test_data_is_numpy():
    for file in sorted((PACKAGE / "data").glob("*.py")):
        jax = {name for name in imports_of(file) if name.split(".")[0] in ("jax", "flax", "optax")}
        assert not jax or file.name == "loader.py", f"{file.name} imports {jax}"


def test_nothing_at_run_time_asks_for_torch():
    asked = [
        file.relative_to(ROOT)
        for file in PACKAGE.rglob("*.py")
        for name in imports_of(file)
        if name.split(".")[0] in ("torch", "torchcodec", "torchaudio", "librosa")
    ]
    assert not asked


def test_bad_flags_are_answered_before_jax_is_loaded():
    code = "import sys, xtremes_jax.arguments; sys.exit('jax' in sys.modules or 'datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture
def readme_tables():
    path = ROOT / "scripts" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", path)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_tables_go_between_their_markers(readme_tables):
    text = "a\n<!-- flags:begin -->\nstale row\n<!-- flags:end -->\nb\n<!-- tasks:begin -->\n<!-- tasks:end -->\n"
    text += "<!-- files:begin -->\n<!-- files:end -->\n"
    filled = readme_tables.with_tables(text)
    assert readme_tables.with_tables(filled) == filled != text
    assert "| `--mask_time_prob` | `0.05` |" in filled and "stale row" not in filled
    assert filled.count("| `mls` |") == 1
    assert filled.count("xtremes_jax/training/step.py ") == 1
    rows = [line for line in filled.splitlines() if line.startswith("| `--") and "`--task` |" not in line]
    assert len(rows) == len(FLAGS) + len(PLAN_FLAGS) - 1
    with pytest.raises(ValueError, match="markers"):
        readme_tables.with_tables("no markers")


def test_readme_is_current(readme_tables):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_tables.with_tables(text) == text, "run python scripts/readme_tables.py --write README.md"
