"""The notebook: it runs from top to bottom, defines nothing, and is stored as it was executed.

After a change, this executes it again, in the project's folder:

    jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
        "Image Classifier Project.ipynb"
"""

import argparse
import ast
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, TIMEOUT

import train
import utils
from image_files.names import CATEGORY_NAMES, load_names

NAME = "Image Classifier Project.ipynb"
SAMPLE = "assets/sample_flowers"
DEFAULTS = {"ARCH", "WEIGHTS", "VIEWS", "HIDDEN_UNITS", "DROPOUT", "LEARNING_RATE", "EPOCHS"}
DEFAULTS |= {"BATCH_SIZE", "SEED", "DEVICE"}
# Folders of people and machines, and addresses of objects in memory.
PRIVATE = r"(?<![\w.])/(root|home|Users|tmp|work|mnt|var|opt|usr)\b|\b0x[0-9a-f]{6}"


def code_cells(notebook) -> list:
    """List the code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def settings_cell(notebook):
    """Return the cell with the settings."""
    [cell] = [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", [])]
    return cell


def tree_of(source: str) -> ast.Module:
    """Parse the Python in a cell: without IPython's own lines."""
    lines = source.splitlines()
    return ast.parse("\n".join("" if re.match(r"\s*[%!]", line) else line for line in lines))


def has_figure(source: str) -> bool:
    """Return whether a cell ends with a figure of `plots` or `report`, or draws with seaborn."""
    last = ast.unparse(tree_of(source).body[-1])
    return re.match(r"plots\.\w+\(|report\.\w+_figure\(", last) is not None or "sns." in source


def count_figures(cell) -> int:
    """Count the figures in a cell's outputs."""
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def text_of(cell) -> str:
    """Return a cell and its outputs, without the figures."""
    data = [{**output.get("data", {}), "image/png": ""} for output in cell.outputs]
    texts = [output.get("text", "") for output in cell.outputs]
    return json.dumps([cell.source, cell.metadata, data, texts])


def printed(cells, stream: str) -> str:
    """Return what cells printed to a stream."""
    outputs = [output for cell in cells for output in cell.outputs]
    outputs = [output for output in outputs if output.output_type == "stream"]
    return "".join(output.text for output in outputs if output.name == stream)


@pytest.fixture(scope="module")
def notebook():
    """The notebook as it is stored."""
    return nbformat.read(ROOT / NAME, as_version=4)


@pytest.fixture(scope="module")
def settings(notebook) -> dict:
    """The values of the settings cell."""
    lines = tree_of(settings_cell(notebook).source).body
    return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}


@pytest.fixture(scope="module")
def executed(notebook, tmp_path_factory):
    """A copy of the project in which the real command has executed the notebook on the sample.

    To save time, it has a quarter of the images of train, and a third of those of valid and test.
    """
    folder = tmp_path_factory.mktemp("notebook")
    for path in [*ROOT.glob("*.py"), ROOT / CATEGORY_NAMES]:
        shutil.copy(path, folder)
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
    for name in (*packages, SAMPLE):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "assets" / "car.jpg", folder / "assets")
    for split, step in (("train", 4), ("valid", 3), ("test", 3)):
        for category in (folder / SAMPLE / split).iterdir():
            images = sorted(category.iterdir())
            for image in set(images) - set(images[::step]):
                image.unlink()
    changed = copy.deepcopy(notebook)
    for cell in code_cells(changed):
        cell.outputs, cell.execution_count = [], None
    cell, weights = settings_cell(changed), os.environ.get("VGG16_WEIGHTS", "none")
    cell.source += f"\nWEIGHTS = {weights!r}"  # no network
    nbformat.write(changed, folder / NAME)
    jupyter = shutil.which("jupyter", path=Path(sys.executable).parent) or "jupyter"
    command = [jupyter, "nbconvert", "--to", "notebook", "--execute", "--inplace", NAME]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)


def test_it_runs_from_top_to_bottom_and_its_checkpoint_predicts(executed, settings, call):
    cells = code_cells(nbformat.read(executed / NAME, as_version=4))
    line = r"^test accuracy: (\d+\.\d)% of 12 images$"
    [accuracy] = re.findall(line, printed(cells, "stdout"), re.MULTILINE)
    assert float(accuracy) >= (80 if "VGG16_WEIGHTS" in os.environ else 0)
    assert printed(cells, "stderr") == ""
    for cell in cells:
        assert count_figures(cell) == has_figure(cell.source), cell.source
    [checkpoint] = (executed / "assets" / "model").iterdir()
    assert checkpoint == executed / settings["CHECKPOINT"]
    image = sorted((executed / SAMPLE / "test").rglob("*.jpg"))[0]
    done = call("predict.py", "--input", image, "--checkpoint", checkpoint, "--top_k", 6)
    assert done.returncode == 0, done.stderr
    names = load_names(ROOT / CATEGORY_NAMES)
    for folder in (executed / SAMPLE / "train").iterdir():
        assert names[folder.name] in done.stdout


def test_it_defines_nothing(notebook):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code_cells(notebook):
        assert not any(isinstance(node, kinds) for node in ast.walk(tree_of(cell.source)))


def test_its_settings_are_those_of_train_py(settings):
    defaults = vars(train.parse_arguments(["--data_dir", "x"]))
    data = utils.read_data_folder(SAMPLE)
    defaults["views"] = train.number_of_views(argparse.Namespace(**defaults), data)
    assert {name: settings[name] for name in DEFAULTS} == {n: defaults[n.lower()] for n in DEFAULTS}
    assert settings["CATEGORY_NAMES"] is None is defaults["category_names"]
    assert settings["DATA_DIR"] == SAMPLE
    assert settings["CHECKPOINT"].startswith("assets/model/")  # which git ignores
    assert settings.keys() == DEFAULTS | {"CATEGORY_NAMES", "DATA_DIR", "CHECKPOINT"}


def test_its_links_lead_to_headings(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = {line.lstrip("# ") for line in text.splitlines() if line.startswith("#")}
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(links) > 12
    assert {link.replace("-", " ") for link in links} <= headings


def test_it_is_stored_as_it_was_executed(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert all(output.output_type != "error" for output in cell.outputs)
        assert count_figures(cell) == has_figure(cell.source), cell.source
        assert "execution" not in cell.metadata  # the times of its execution
    assert re.search(r"^test accuracy: \d", printed(cells, "stdout"), re.MULTILINE)
    assert printed(cells, "stderr") == ""


def test_it_says_nothing_of_the_machine(notebook):
    for cell in code_cells(notebook):
        assert not re.search(PRIVATE, text_of(cell)), cell.source
    assert notebook.metadata.keys() <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.display_name in ("Python 3", "Python 3 (ipykernel)")
