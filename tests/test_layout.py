"""The layout: imports go down only, functions are short, and nothing runs on import."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# What each room may import of the project beside itself: the rooms below it.
LOWEST = {"system"}
LOWER = {"inference", "image_files", "networks", "evaluation"}
BELOW = {
    "train": {"checks", "training", "model", "utils"} | LOWER | LOWEST,
    "predict": {"model", "utils"} | LOWER | LOWEST,
    "checks": {"training", "model", "utils"} | LOWER | LOWEST,
    "training": {"model", "utils"} | LOWER | LOWEST,
    "model": {"utils"} | LOWER | LOWEST,
    "utils": LOWER | LOWEST,
    **dict.fromkeys(LOWER, LOWEST),
    "system": set(),
}
FUNCTION_LINES = 60
FILES = sorted(
    [*ROOT.glob("*.py"), *(path for room in BELOW for path in ROOT.glob(f"{room}/*.py"))]
)


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path):
    room = room_of(path)
    imported = imported_by(ast.parse(path.read_text(encoding="utf-8")))
    of_project = {*BELOW, "tests", "benchmarks"}
    assert imported & of_project <= BELOW[room] | {room}


def test_an_import_that_goes_up_is_noticed():
    tree = ast.parse("def f():\n    from train import main\n\nimport os, utils.x\n")
    assert imported_by(tree) == {"train", "os", "utils"}
    assert "train" not in BELOW["model"] and "checks" not in BELOW["predict"]


def test_every_room_is_known():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {path.stem for path in ROOT.glob("*.py")} | packages == set(BELOW)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_are_short(path):
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_runs_on_import(path):
    """At the top level, a module defines functions, classes and constants only."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        tests = ('__name__ == "__main__"', "TYPE_CHECKING")
        is_script = isinstance(node, ast.If) and ast.unparse(node.test).replace("'", '"') in tests
        is_update = isinstance(node, ast.AugAssign)  # of a constant
        assert isinstance(node, allowed) or is_docstring or is_script or is_update, node.lineno
