"""Loads the environment that a recipe names, in a worker process, and makes an object for each episode."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from services.reward import functions

BUILT_IN: Final[Mapping[str, str]] = {
    "calculator": "services.reward.environments.builtin.calculator:Calculator",
    "gymnasium": "services.reward.environments.builtin.reset_step:ResetStep",
    "openenv": "services.reward.environments.builtin.reset_step:ResetStep",
    "python": "services.reward.environments.builtin.python:Python",
    "search": "services.reward.environments.builtin.search:Search",
    "second-try": "services.reward.environments.builtin.second_try:SecondTry",
}
"""Class of every built-in environment by name."""


class Loaded:
    """A class, or a function that makes objects, with its settings. Raises every error of the import, and ValueError."""

    def __init__(self, environment: str, settings: Mapping[str, object]) -> None:
        place = BUILT_IN.get(environment, environment)
        if ":" not in place:
            raise ValueError(f"must be one of {', '.join(BUILT_IN)}, `file.py:Class` or `module:Class`, got {place!r}")
        module, self._make = functions.load_callable(place, what="class")
        self._settings = dict(settings)
        self._check(environment)
        self.version = str(getattr(self._make, "VERSION", None) or functions.version_of(module))
        self.file = str(getattr(module, "__file__", None) or "")
        """The source that the class or function is in."""
        self.scores = bool(getattr(self._make, "scores", False))
        """Whether its episodes end with a score."""

    def new(self) -> Any:
        """An object for one episode."""
        made = self._make(**self._settings)
        for method in ("open", "step"):
            if not callable(getattr(made, method, None)):
                raise ValueError(f"has no method `{method}`")
        return made

    def _check(self, environment: str) -> None:
        if isinstance(self._make, type):
            for method in ("open", "step"):
                if not callable(getattr(self._make, method, None)):
                    raise ValueError(f"{environment}: the class has no method `{method}`")
        parameters = _parameters(self._make)
        takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        if not takes_all and (extra := [name for name in self._settings if name not in parameters]):
            raise ValueError(f"{environment}: takes no {extra[0]!r}, which the environment's settings name")
        for name, one in parameters.items():
            required = one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
            if required and name not in self._settings:
                raise ValueError(f"{environment}: needs {name!r} among the environment's settings")
            if one.kind is one.POSITIONAL_ONLY:
                raise ValueError(f"{environment}: is called by keyword, but {name!r} is positional only")


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):  # a class written in C states none
        return {}
