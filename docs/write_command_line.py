"""Write docs/command_line.md from the help of the two commands.

python docs/write_command_line.py
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import predict  # noqa: E402
import train  # noqa: E402

PAGE = ROOT / "docs" / "command_line.md"
INTRODUCTION = """# Command line

This page is made by `python docs/write_command_line.py` from what `--help` says. A mistake on the
command line gives one line on standard error that says what to do, and exit status 2.
"""


def describe(parser: argparse.ArgumentParser) -> str:
    """Return a section about a command: its usage, and one flag a row."""
    lines = [f"\n## {parser.prog}\n", f"`{parser.usage}`"]
    formatter = parser.formatter_class(parser.prog)
    for group in parser._action_groups:  # in no public place
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        lines += [f"\n**{group.title}**\n", "| flag | meaning | default |", "|---|---|---|"]
        for action in actions:
            text = formatter._expand_help(action)
            meaning, default = re.fullmatch(r"(.*?)(?: \(default: (.*)\))?", text).groups()
            flag = formatter._format_action_invocation(action)
            if action.dest == "cache_dir":
                default = "`image-classifier` in the cache folder of the system"
            cells = [f"`{flag}`", meaning, default or ""]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the whole page."""
    return INTRODUCTION + describe(train.make_parser(None)) + describe(predict.make_parser(None))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
