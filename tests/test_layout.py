"""The layout: imports go down only, and functions are short."""

import ast
from pathlib import Path

from conftest import ROOT

# What each room may import of the project beside itself: the rooms below it.
LOWER = {"inference", "image_files", "networks", "evaluation"}
BELOW = {
    "train": {"checks", "training", "model", "utils", "system"} | LOWER,
    "predict": {"model", "utils", "system"} | LOWER,
    "checks": {"training", "model", "utils", "system"} | LOWER,
    "training": {"model", "utils", "system"} | LOWER,
    "model": {"utils", "system"} | LOWER,
    "utils": {"system"} | LOWER,
    **dict.fromkeys(LOWER, {"system"}),
    "system": set(),
}
FUNCTION_LINES = 60
FILES = [*ROOT.glob("*.py"), *(path for room in BELOW for path in ROOT.glob(f"{room}/*.py"))]


def room_of(path: Path) -> str:
    """Return the package or the script that a file belongs to."""
    return path.stem if path.parent == ROOT else path.parent.name


def imported_by(tree: ast.AST) -> set[str]:
    """Return the first name of every module that is imported, inside of functions as well."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            modules.add(str(node.module).split(".")[0])
    return modules


def test_imports_go_down_only():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {path.stem for path in ROOT.glob("*.py")} | packages == set(BELOW)
    for path in FILES:
        of_project = imported_by(ast.parse(path.read_text())) & {*BELOW, "tests", "benchmarks"}
        room = room_of(path)
        assert of_project <= BELOW[room] | {room}, path


def test_an_import_that_goes_up_is_noticed():
    tree = ast.parse("def f():\n    from train import main\n\nimport os, utils.x\n")
    assert imported_by(tree) == {"train", "os", "utils"}
    assert "train" not in BELOW["model"] and "checks" not in BELOW["predict"]


def test_functions_are_short():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= FUNCTION_LINES, f"{path}: {node.name}"
