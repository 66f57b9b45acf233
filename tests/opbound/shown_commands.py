"""Markdown pages that show what happens: their commands run, and print what the page says they print.

A block of commands is fenced as `console`, with one command after `$` and its output below. A comment on
the line before may say

    <!-- show: Operators 6 | Conclusions -->   which lines are shown: from the line that begins so this many,
                                               or, without a number, the whole paragraph that it stands in;
                                               `...` stands for the others
    <!-- exit: 1 -->                           the exit code, if it is not 0

`<!-- file: NAME -->` before any other block puts its content into the folder in which the commands run.
With OPBOUND_UPDATE_DOCS=1 in the environment the present output is written into the page.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

UPDATE = bool(os.environ.get("OPBOUND_UPDATE_DOCS"))
_COMMAND = re.compile(
    r"((?:^<!-- (?:show|exit): .* -->\n)*)^```console\n\$ (.*)\n((?:.*\n)*?)^```$", re.MULTILINE
)
_NOTE = re.compile(r"<!-- (\w+): (.*) -->")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Page:
    """A Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        """The contents of all blocks of a language."""
        return [match[2] for match in _BLOCK.finditer(self.text) if match[1] == language]

    def write_files(self, folder: Path) -> None:
        """Puts down the files that the page shows."""
        for name, content in _FILE.findall(self.text):
            (folder / name).write_text(content, encoding="utf-8")

    def run_commands(self, folder: Path) -> None:
        """Runs all commands in order and compares what they print, or writes it into the page."""
        commands = list(_COMMAND.finditer(self.text))
        assert len(commands) == len(self.blocks("console")), "a console block is not one command"
        pieces, end = [], 0
        for found in commands:
            notes = dict(_NOTE.findall(found[1]))
            printed = run(found[2], folder, code=int(notes.get("exit", 0)))
            wanted = chosen(printed, notes.get("show"))
            if not UPDATE:
                assert f"$ {found[2]}\n{found[3]}" == f"$ {found[2]}\n{wanted}"
            pieces += [self.text[end : found.start(3)], wanted]
            end = found.end(3)
        if UPDATE:
            self.path.write_text("".join([*pieces, self.text[end:]]), encoding="utf-8")

    def run_python(self, folder: Path) -> None:
        """Runs all Python blocks in one process, in order, as a reader would type them."""
        run_python("\n".join(self.blocks("python")), folder)


def run(command: str, folder: Path, code: int = 0) -> str:
    """What a command prints, without spaces at the ends of lines."""
    program, *words = shlex.split(command)
    assert program in ("opbound", "python"), command
    module = ["-m", "opbound"] if program == "opbound" else []
    done = _run([*module, *words], folder)
    assert done.returncode == code, f"{command}: {done.stderr}"
    return "".join(f"{line.rstrip()}\n" for line in (done.stdout + done.stderr).splitlines())


def run_python(code: str, folder: Path) -> str:
    """What a program prints."""
    done = _run(["-c", code], folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=folder,
        check=False,
    )


def chosen(printed: str, show: str | None) -> str:
    """The lines that a page shows, `...` in place of each run of others."""
    if show is None:
        return printed
    lines, kept, last = printed.splitlines(), [], 0
    blank = [i for i, line in enumerate(lines) if not line]
    for item in show.split("|"):
        begins, count = re.fullmatch(r"(.*?)(?: (\d+))?", item.strip()).groups()
        found = next((i for i in range(last, len(lines)) if lines[i].startswith(begins)), None)
        assert found is not None, f"no line begins with {begins!r}: {printed[:2000]}"
        start = found if count else max([last, *(i + 1 for i in blank if i < found)])
        stop = found + int(count) if count else min([len(lines), *(i for i in blank if i > found)])
        if any(lines[last:start]):
            kept.append("...")
        if start > last and not lines[start - 1]:
            kept.append("")
        kept += lines[start:stop]
        last = stop
    if any(lines[last:]):
        kept.append("...")
    return "".join(f"{line}\n" for line in kept)
