"""Command lines whose flags also come from the environment: `--metrics-port` from SLUICE_METRICS_PORT, and so on.

The command line wins; an empty variable counts as unset. A switch takes 1 or 0; a flag that may be repeated takes a value
a line. Variables of configuration keys have two underscores: SLUICE__RUN__TOTAL_STEPS (sluice/config/load.py). Needs the
standard library alone, so that --help is instant.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

PREFIX = "SLUICE_"


class ServiceParser(argparse.ArgumentParser):
    """An ArgumentParser that reads the variables of `environ` (os.environ by default) before the command line."""

    def __init__(self, *args: Any, environ: Mapping[str, str] | None = None, **how: Any) -> None:
        self._environ = os.environ if environ is None else environ
        super().__init__(*args, allow_abbrev=False, **how)

    def add_argument(self, *names: Any, **how: Any) -> argparse.Action:
        """Adds a flag; the flag's help names the flag's variable."""
        action = super().add_argument(*names, **how)
        if (variable := variable_of(action)) and variable not in (action.help or ""):
            action.help = f"{action.help or ''} [{variable}]".lstrip()
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parses environment and command line; ends the process with code 2 where these cannot be understood."""
        given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([*self._from_environment(), *given], namespace)

    def error(self, message: str) -> NoReturn:
        """Adds the names of the variables that were read to the message, which names only flags."""
        read = [name for name in self._variables() if self._environ.get(name)]
        super().error(message + (f" (read from the environment: {', '.join(read)})" if read else ""))

    def _from_environment(self) -> Iterator[str]:
        for variable, action in self._variables().items():
            text = self._environ.get(variable, "")
            flag = action.option_strings[-1]
            if isinstance(action, argparse._StoreTrueAction):
                if text not in ("", "0", "1"):
                    self.error(f"{variable}: must be 1 or 0, got {text!r}")
                yield from [flag] if text == "1" else []
            elif text:
                values = text.splitlines() if isinstance(action, argparse._AppendAction) else [text]
                yield from (f"{flag}={value}" for value in values)

    def _variables(self) -> dict[str, argparse.Action]:
        return {variable: action for action in self._actions if (variable := variable_of(action))}


def variable_of(action: argparse.Action) -> str:
    """SLUICE_METRICS_PORT for --metrics-port; empty for --help and positional arguments."""
    flags = [flag for flag in action.option_strings if flag.startswith("--")]
    if not flags or isinstance(action, argparse._HelpAction):
        return ""
    return PREFIX + flags[-1].removeprefix("--").replace("-", "_").upper()
