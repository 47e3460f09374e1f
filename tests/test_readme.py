"""README.md: its commands parse, it names every flag, its links lead somewhere."""

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
    """The script and the arguments of each command for one of them in the code blocks."""
    found = []
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
                places = [i for i, word in enumerate(command) if Path(word).name in PARSERS]
                if places and re.search(r"python|torchrun", " ".join(command[: places[0]])):
                    place = places[0]
                    found.append((Path(command[place]).name, command[place + 1 :]))
    return found


def test_commands_are_found_in_code_blocks_only():
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
    found = [arguments for name, arguments in commands(readme) if name == script]
    assert found, f"README.md has no command for {script}"
    for arguments in found:
        assert PARSERS[script](arguments)


@pytest.mark.parametrize("script", PARSERS)
def test_every_flag_is_mentioned(readme, script, capsys):
    with pytest.raises(SystemExit):
        PARSERS[script](["--help"])
    flags = set(re.findall(r"--[a-z_]+", capsys.readouterr().out)) - {"--help"}
    assert len(flags) > 5
    missing = {flag for flag in flags if not re.search(rf"{flag}\b", readme)}
    assert not missing


def test_every_link_to_a_file_leads_to_one(readme):
    links = re.findall(r"\]\(<?([^)#>\s]+)|(?:src|href)=\"([^\"#]+)", readme)
    files = [one or other for one, other in links if "://" not in (one or other)]
    assert files, "README.md links to no file"
    assert not [name for name in files if not (ROOT / unquote(name)).exists()]
