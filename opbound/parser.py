"""A command line whose errors are one line that says what was meant."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from graph_ir.errors import OpboundError, did_you_mean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: one line, with the word that was meant."""

    def error(self, message: str) -> NoReturn:
        """Raises OpboundError in place of printing the usage and exiting."""
        raise OpboundError(f"{self._with_suggestion(message)} (see {self.prog} --help)")

    def _with_suggestion(self, message: str) -> str:
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL)
        if choice:
            known = re.findall(r"[\w.-]+", choice[2])
            hint = did_you_mean(choice[1], known)
            return f"{message[: choice.start()]}{choice[1]!r} is not a choice; {hint}"
        unknown = re.search(r"unrecognized arguments: (.*)", message, re.DOTALL)
        option = unknown[1].split()[0].split("=")[0] if unknown and unknown[1].strip() else ""
        if option.startswith("--"):
            known = [name for name in self.all_options() if name.startswith("--")]
            return f"there is no option {option}; {did_you_mean(option, known)}"
        return message

    def all_options(self) -> list[str]:
        """Every option of this parser and of its commands."""
        names = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    names += parser.all_options()
        return names
