"""README.md and docs: commands run, links lead to files, figures have been measured."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import MAINS, ROOT

import predict
import train

PARSERS = {"train.py": train.parse_arguments, "predict.py": predict.parse_arguments}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEASURED = ("results.md", "performance.md")
SAMPLE = ROOT / "assets" / "sample_flowers"
# Commands that are only parsed: they download, or need other programs.
NOT_RUN = ("--download", "torchrun ", "find ", "--web_runtime")


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks in a language; a line that ends with a backslash goes on."""
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\\\n\s*", "", block) for block in found]


def commands(page: Path) -> list[tuple[str, str, list[str]]]:
    """Return each command that runs a script, the script, and its arguments."""
    runs = []
    for block in blocks(page.read_text(encoding="utf-8"), "sh"):
        for command in re.split(r"&&|\n", block):
            is_run = re.search(r"\b(python|torchrun) ", command)
            script = next((name for name in PARSERS if is_run and f" {name} " in command), None)
            if script:
                words = shlex.split(command.rpartition("|")[2])
                runs.append((command, script, words[words.index(script) + 1 :]))
    return runs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page):
    for command, script, arguments in commands(page):
        assert PARSERS[script](arguments), command


@pytest.fixture(scope="module")
def working_folder(tiny, tmp_path_factory) -> Path:
    """A folder with the files that the commands name."""
    root = tmp_path_factory.mktemp("docs")
    (root / "assets" / "model").mkdir(parents=True)
    (root / "assets" / "sample_flowers").symlink_to(SAMPLE)
    categories = sorted(path.name for path in (SAMPLE / "train").iterdir())
    for category in categories[:5]:
        shutil.copytree(SAMPLE / "train" / category, root / "photos" / category)
        shutil.copytree(SAMPLE / "test" / category, root / "flowers" / "test" / category)
    shutil.copytree(SAMPLE / "test" / "54", root / "new_photos")
    for name in ("photo.jpg", "image.jpg"):
        shutil.copy(SAMPLE / "test" / "54" / "drawing_031.jpg", root / name)
    shutil.copy(ROOT / "cat_to_name.json", root)
    shutil.copy(ROOT / "assets" / "car.jpg", root / "assets")
    for name in ("corrections.csv", "corrections2.csv"):
        with open(root / name, "w", newline="") as file:
            path = f"{categories[0]}/drawing_001.jpg"
            rows = [("path", "action", "category"), (path, "exclude", "")]
            csv.writer(file).writerows(rows)
    return root


def test_every_command_runs_in_the_order_of_the_pages(working_folder, call, tiny, monkeypatch):
    monkeypatch.chdir(working_folder)
    count = 0
    for page in PAGES:
        for command, script, arguments in commands(page):
            if any(word in command for word in NOT_RUN) or "102" in arguments:
                continue
            if script == "train.py":
                arguments += ["--arch", tiny, "--weights", "none", "--workers", "0"]
            for name in ("names.csv", "names.json", "sorted", "by_category"):  # of another page
                path = working_folder / name
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
            done = call(script, *arguments)
            assert done.returncode == 0, f"{page.name}: {command}\n{done.stderr}"
            count += 1
    assert count > 15
    (working_folder / "runs").mkdir()
    beside = working_folder / "assets" / "model" / "checkpoint_script.metrics.json"
    shutil.copy(beside, working_folder / "runs" / "a.metrics.json")
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "python"):
            program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{TINY}\n{block}"
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0 and done.stdout, done.stderr


TINY = f"""
sys.path.insert(0, {str(ROOT / "tests")!r})
import tiny_train, model
model.ARCHITECTURES["tiny"] = model.Architecture(tiny_train.build, "", tiny_train.FEATURE_LAYERS)
"""


@pytest.mark.parametrize("script", PARSERS)
def test_the_page_of_the_command_line_is_made_from_the_help(script):
    done = subprocess.run(
        [sys.executable, "-c", "import write_command_line as w; print(w.page(), end='')"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "docs")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    stored = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    assert done.stdout == stored, f"run python docs/write_command_line.py\n{done.stderr}"
    flags = {option for a in MAKERS[script](None)._actions for option in a.option_strings}
    rows = set(re.findall(r"^\| `(--\w+)", stored, re.MULTILINE))
    assert flags - {"-h", "--help"} <= rows and len(flags) > 20


MAKERS = {"train.py": train.make_parser, "predict.py": predict.make_parser}


@pytest.mark.parametrize("script", MAINS)
def test_the_help_fits_80_columns_and_has_every_default(script):
    text = MAKERS[script](None).format_help()
    assert max(map(len, text.splitlines())) <= 80
    assert "(default: None)" not in text and "(default: False)" not in text
    for action in MAKERS[script](None)._actions:
        assert action.help and len(action.help) > 10, action.dest


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120


def anchor(title: str) -> str:
    """Return the name that a title has in links, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    pairs = re.findall(r"\]\(<?([^)>\s]+)|(?:src|href)=\"([^\"]+)", text)
    for link in (markdown or html for markdown, html in pairs):
        if "://" not in link:
            name, _, title = link.partition("#")
            target = (page.parent / unquote(name)).resolve() if name else page
            assert target.exists(), link
            if title:
                titles = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
                assert title in map(anchor, titles), link


def figures(text: str, units: str = "") -> set[str]:
    """Return the numbers in a text, outside of code, that one of these units follows."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    number = r"(?<![\w.,])\d[\d,]*(?:\.\d+)?"
    unit = rf"(?=\s?(?:{units}))" if units else ""
    return {found.replace(",", "") for found in re.findall(number + unit, prose)}


OTHERS = [page for page in PAGES if page.name not in (*MEASURED, "command_line.md")]


@pytest.mark.parametrize(
    "page", [*OTHERS, ROOT / "Image Classifier Project.ipynb"], ids=lambda page: page.name
)
def test_every_figure_is_one_of_the_benchmarks(page):
    """Percentages, factors and times; they may be rounded."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in MEASURED]
    measured = [float(number) for number in figures("\n".join(pages))]
    for number in figures(text, r"%|times\b|s\b|ms\b|minutes"):
        decimals = len(number.partition(".")[2])
        assert float(number) in [round(value, decimals) for value in measured], number
