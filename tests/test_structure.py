"""The promises about imports: one direction, one door for each heavy package, no cost at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "litelvlm"
FILES = sorted(PACKAGE.rglob("*.py"))

# A module imports only from modules of a lower level; inside one folder anything goes.
LEVELS = [
    {"_version", "errors", "pruning", "resources"},
    {"config", "geometry", "images", "profiling", "metrics", "answers"},
    {"result", "methods"},
    {"models"},
    {"question", "scene"},
    {"selecting"},
    {"families"},
    {"pipeline"},
    {"loading", "viz", "data"},
    {"plugin"},
    {"evaluation"},
    {"bench", "train", "evaluate", "reversal"},
    {"ui", "space"},
    {"cli"},
    {"__init__", "__main__"},
]
# Where a package may be imported. Import inside a function counts too.
DOORS = {
    "open_clip": ("models/dual_encoder.py", "train/", "reversal.py"),
    "transformers": (
        "models/language.py",
        "models/segmenter.py",
        "train/",
        "plugin/",
        "models/sam_encoder.py",
    ),
    "gradio": ("ui/",),
    "matplotlib": ("viz.py", "evaluation/", "train/", "reversal.py"),
    "argparse": ("cli/",),
}


def imports(file):
    """(module, at top level) of every import statement in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.If))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) not in hidden
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "litelvlm":
                for name in node.names:
                    yield f"litelvlm.{name.name}", id(node) not in hidden
            else:
                yield node.module, id(node) not in hidden


def level(name):
    return next((i for i, names in enumerate(LEVELS) if name in names), None)


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_imports_point_one_way_and_through_the_doors(file):
    where = file.relative_to(PACKAGE).as_posix()
    own = where.split("/")[0].removesuffix(".py")
    assert level(own) is not None, f"{own} has no level: add it to LEVELS"
    for module, at_top in imports(file):
        root, _, rest = module.partition(".")
        if root == "litelvlm" and rest and at_top:
            used = rest.split(".")[0]
            if used != own and level(used) is not None:
                assert level(used) < level(own), f"{where} imports {module}"
        if root in DOORS:
            assert where.startswith(DOORS[root]), f"{where} imports {root}"


def test_the_idea_imports_torch_only():
    modules = {module.split(".")[0] for module, _ in imports(PACKAGE / "pruning.py")}
    assert modules == {"__future__", "dataclasses", "enum", "torch"}


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, litelvlm; "
        "print(sorted({'torch', 'transformers', 'open_clip', 'gradio', 'matplotlib', 'cv2'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_patches_a_class_or_names_a_device():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert ".cuda()" not in text, file
        assert "types.MethodType" not in text, file
        assert ".__class__ =" not in text, file
