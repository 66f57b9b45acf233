"""What README.md shows is what happens: its Python runs, its commands print what it says.

`OPBOUND_UPDATE_README=1 pytest tests/opbound/test_readme.py` writes the commands' present output
into the README.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# A file that an example needs: an HTML comment before the block names it.
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    text = README.read_text(encoding="utf-8")
    return [match[2] for match in _BLOCK.finditer(text) if match[1] == language]


@pytest.fixture
def folder(tmp_path, light, monkeypatch):
    """A folder with the README's files and the model that its commands name."""
    for name, content in _FILE.findall(README.read_text(encoding="utf-8")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "resnet50.onnx").symlink_to(light / "light_resnet50.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(command: str, folder: Path) -> str:
    words = shlex.split(command)
    assert words[0] == "opbound"
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


@pytest.mark.parametrize("index", range(len(blocks("console"))))
def test_commands_print_what_the_readme_shows(index, folder):
    block = blocks("console")[index]
    first, _, shown = block.partition("\n")
    printed = run(first.removeprefix("$ "), folder)
    if os.environ.get("OPBOUND_UPDATE_README"):
        text = README.read_text(encoding="utf-8")
        README.write_text(text.replace(block, f"{first}\n{printed}"), encoding="utf-8")
    elif shown.endswith("...\n"):
        assert printed.startswith(shown.removesuffix("...\n"))
    else:
        assert printed == shown


def test_the_python_runs(folder):
    """All blocks run in one process, in order, as a reader would type them."""
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
