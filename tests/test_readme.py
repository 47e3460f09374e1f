"""README.md: its commands parse, its links lead to files, its figures have been measured."""

import json
import re
import shlex
from urllib.parse import unquote

import pytest
from conftest import ROOT

import predict
import train

PARSERS = {"train.py": train.parse_arguments, "predict.py": predict.parse_arguments}


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the script and the arguments of each command in a code block that runs a script."""
    runs = []
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for command in re.split(r"&&|[|\n]", block):
            script = next((name for name in PARSERS if f" {name} " in command), None)
            if script:
                words = shlex.split(command)
                runs.append((script, words[words.index(script) + 1 :]))
    return runs


@pytest.mark.parametrize("script", PARSERS)
def test_every_command_parses(readme, script):
    runs = [arguments for name, arguments in commands(readme) if name == script]
    assert runs, f"README.md has no command that runs {script}"
    for arguments in runs:
        assert PARSERS[script](arguments)


@pytest.mark.parametrize("script", PARSERS)
def test_every_flag_is_mentioned(readme, script, capsys):
    with pytest.raises(SystemExit):
        PARSERS[script](["--help"])
    flags = set(re.findall(r"--[a-z0-9_]+", capsys.readouterr().out)) - {"--help"}
    assert len(flags) > 5
    missing = {flag for flag in flags if not re.search(rf"{flag}\b", readme)}
    assert not missing


def test_every_link_to_a_file_leads_to_a_file(readme):
    pairs = re.findall(r"\]\(<?([^)#>\s]+)|(?:src|href)=\"([^\"#]+)", readme)
    links = [markdown or html for markdown, html in pairs]
    files = [link for link in links if "://" not in link]
    assert files, "README.md links to no file"
    assert not [name for name in files if not (ROOT / unquote(name)).exists()]


def figures(text: str, units: str = "") -> set[str]:
    """Return the numbers in a text, outside of code, that one of these units follows."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    number = r"(?<![\w.,])\d[\d,]*(?:\.\d+)?"
    unit = rf"(?=\s?(?:{units}))" if units else ""
    return {found.replace(",", "") for found in re.findall(number + unit, prose)}


@pytest.mark.parametrize("name", ["README.md", "Image Classifier Project.ipynb"])
def test_every_figure_is_one_of_the_benchmarks(name):
    """Percentages, factors and times; they may be rounded."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    measured = [float(number) for number in figures(page)]
    shown = figures(text, r"%|times\b|s\b|ms\b|minutes")
    assert shown
    for number in shown:
        decimals = len(number.partition(".")[2])
        assert float(number) in [round(value, decimals) for value in measured], number
