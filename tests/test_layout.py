"""The layout: imports go down only, rooms stay within their limits, nothing runs on import."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# What each room may import of the project, and how many lines it may have. A room of support/ may
# import others of support/ only.
MIDDLE = {
    "utils": (set(), 400),
    "model": ({"utils"}, 400),
    "features": ({"model", "utils"}, 350),
    "fitting": ({"features", "model", "utils"}, 350),
    "data_check": ({"fitting", "model", "utils"}, 300),
    "report": ({"features", "fitting", "plots", "utils"}, 150),
    "plots": (set(), 350),
}
TOP = {"train": (set(MIDDLE), 300), "predict": (set(MIDDLE), 350)}
ROOMS = MIDDLE | TOP
SUPPORT_LINES, FUNCTION_LINES = 300, 60
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("support/*.py")])


def imported_by(tree: ast.AST) -> set[str]:
    """List the first name of every module that is imported, inside of functions as well."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            modules.add(str(node.module).split(".")[0])
    return modules


def allowed_for(path: Path) -> set[str]:
    """List the project's modules that a room may import."""
    if path.parent != ROOT:
        return {"support"}
    return ROOMS[path.stem][0] | {"support"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path):
    of_project = {file.stem for file in ROOT.glob("*.py")} | {"support", "tests", "benchmarks"}
    imported = imported_by(ast.parse(path.read_text(encoding="utf-8")))
    assert imported & of_project <= allowed_for(path)


def test_an_import_that_goes_up_is_noticed():
    tree = ast.parse("def f():\n    from train import main\n\nimport os, utils.x\n")
    assert imported_by(tree) == {"train", "os", "utils"}
    assert "train" not in allowed_for(ROOT / "model.py")
    assert allowed_for(ROOT / "support" / "files.py") == {"support"}


def test_every_room_is_known():
    assert {path.stem for path in ROOT.glob("*.py")} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_rooms_and_functions_stay_within_their_limits(path):
    text = path.read_text(encoding="utf-8")
    limit = ROOMS[path.stem][1] if path.parent == ROOT else SUPPORT_LINES
    assert len(text.splitlines()) <= limit
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_runs_on_import(path):
    """At the top level, a room defines functions, classes and constants only."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        tests = ('__name__ == "__main__"', "TYPE_CHECKING")
        is_script = isinstance(node, ast.If) and ast.unparse(node.test).replace("'", '"') in tests
        is_update = isinstance(node, ast.AugAssign)  # of a constant
        assert isinstance(node, allowed) or is_docstring or is_script or is_update, node.lineno
