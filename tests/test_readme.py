"""README.md: its commands parse, it mentions every flag, its links lead to files."""

import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT

import predict
import train

PARSERS = {"train.py": train.parse_arguments, "predict.py": predict.parse_arguments}


@pytest.fixture(scope="module")
def readme() -> str:
    path = ROOT / "README.md"
    assert path.is_file(), "there is no README.md"
    return path.read_text(encoding="utf-8")


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the script and the arguments of each command in a code block that runs a script."""
    runs = []
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.search(r"(python3?|torchrun)\b.*\b(train|predict)\.py", line):
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
            lexer.whitespace_split = True
            words = [*lexer, ";"]
            while words:
                end = next(i for i, word in enumerate(words) if re.fullmatch("[&|;<>]+", word))
                command, words = words[:end], words[end + 1 :]
                indices = [i for i, word in enumerate(command) if Path(word).name in PARSERS]
                if indices and re.search(r"python|torchrun", " ".join(command[: indices[0]])):
                    script, *arguments = command[indices[0] :]
                    runs.append((Path(script).name, arguments))
    return runs


def test_only_commands_in_code_blocks_count():
    text = """
Type python train.py --no.
```sh
$ python train.py --data_dir "my flowers" \\
    --output_cat 3  # three
pip install -r requirements.txt && python predict.py --input a.jpg --means [1, 2, 3]; ls > x
OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 train.py --seed 1
```
"""
    assert commands(text) == [
        ("train.py", ["--data_dir", "my flowers", "--output_cat", "3"]),
        ("predict.py", ["--input", "a.jpg", "--means", "[1,", "2,", "3]"]),
        ("train.py", ["--seed", "1"]),
    ]


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
