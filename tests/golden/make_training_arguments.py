"""Writes training_arguments.json: the flags of the installed Transformers' trainer and their defaults.

Read from the source, because importing these classes needs torch. A default that is not a literal is left as null.

    python tests/golden/make_training_arguments.py
"""

import ast
import importlib.metadata
import importlib.util
import json
from pathlib import Path

fields = {}
for module in ("training_args.py", "training_args_seq2seq.py"):
    source = Path(importlib.util.find_spec("transformers").origin).parent / module
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name.endswith("TrainingArguments"):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.value, ast.Call):
                    defaults = [word.value for word in line.value.keywords if word.arg == "default"]
                    literal = defaults and isinstance(defaults[0], (ast.Constant, ast.UnaryOp))
                    fields[line.target.id] = ast.literal_eval(defaults[0]) if literal else None

content = {"transformers": importlib.metadata.version("transformers"), "defaults": dict(sorted(fields.items()))}
Path(__file__).with_name("training_arguments.json").write_text(json.dumps(content, indent=1) + "\n")
