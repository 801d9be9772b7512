"""Write the real output of every command in docs/cli.md into it: `python tests/cli/refresh_docs.py`.

Run it whenever the bundled model or what a verb shows has changed; `test_cli_docs.py` says when.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from pathlib import Path

from typer.testing import CliRunner

from pellucid.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
_BLOCK = re.compile(r"```console\n\$ pellucid (.+)\n((?:.*\n)*?)```\n(?:\n<!-- exit (\d+) -->\n)?")


_FILE = re.compile(r"```\w+\n# (\w+\.(?:py|jsonl))\n((?:.*\n)*?)```\n")


def files(page: str) -> dict[str, str]:
    """Name -> text of the files that the page shows, for the commands that are given them."""
    return {match[1]: match[2] for match in _FILE.finditer(page)}


def run(command: str) -> tuple[str, int]:
    """What a command line writes (stdout, or stderr where that is empty), and its exit code."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # for what `--save` writes
        for name, text in files(PAGE.read_text(encoding="utf-8")).items():
            Path(name).write_text(text, encoding="utf-8")
        try:
            result = CliRunner().invoke(app, shlex.split(command), prog_name="pellucid")
        finally:
            os.chdir(here)
    shown = result.stdout or result.stderr
    return "".join(f"{line.rstrip()}\n" for line in shown.splitlines()), result.exit_code


def examples(page: str) -> list[tuple[str, str, int]]:
    """Each command of the page, the output that the page shows, and the exit code that it states (0 if none)."""
    return [(match[1], match[2], int(match[3] or 0)) for match in _BLOCK.finditer(page)]


def refreshed(page: str) -> str:
    """The page with the output that its commands have now."""
    for command, shown, _ in examples(page):
        page = page.replace(f"$ pellucid {command}\n{shown}", f"$ pellucid {command}\n{run(command)[0]}", 1)
    return page


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
