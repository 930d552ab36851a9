"""Whether the environments that a recipe names exist, found out before anything is started.

No code of an environment is run (user_code.py); the reward service that hosts it imports it and has the last word.
"""

from collections.abc import Mapping

from sluice.config.schema import Config
from sluice.config.schema.environments import AGENT, EXTERNAL
from sluice.config.user_code import did_you_mean, problem_of
from sluice.errors import ConfigError

BUILT_IN_ENVIRONMENTS = ("calculator", "gymnasium", "openenv", "python", "search", "second-try")
"""The keys of services/reward/environments/loading.py: BUILT_IN."""


ADAPTERS = ("gymnasium", "openenv")
"""Those whose setting `make` names code of the user's."""


def check_environments(config: Config) -> None:
    """Raises ConfigError with a line for each environment that is missing as seen from the working directory."""
    problems = [
        f"environments.{name}.{problem}"
        for name, one in config.environments.items()
        if (problem := _problem(one.environment, one.settings))
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _problem(environment: str, settings: Mapping[str, object]) -> str | None:
    """Key and problem of one environment."""
    if problem := environment_problem(environment):
        return f"environment: {problem}"
    if environment not in ADAPTERS:
        return None
    where, _, name = str(settings.get("make", "")).rpartition(":")
    if not (where and name.isidentifier()):
        return f"settings.make: must be `file.py:Class` or `module:Class`, got {settings.get('make')!r}"
    problem = problem_of(where, name, what="class or function", methods=("reset", "step"))
    return problem and f"settings.make: {problem}"


def environment_problem(environment: str) -> str | None:
    """What is wrong with an environment's place, with the nearest that exists; None when the environment was found."""
    known = (*BUILT_IN_ENVIRONMENTS, EXTERNAL, AGENT)
    if environment in known:
        return None
    where, colon, name = environment.rpartition(":")
    if not colon and environment.endswith(".py"):
        return f"{environment} needs a class: `{environment}:Environment`"
    if not (where and name.isidentifier()):
        return (
            f"must be one of {', '.join(known)}, `file.py:Class` or `module:Class`, "
            f"got {environment!r}{did_you_mean(environment, known)}"
        )
    return problem_of(where, name, what="class", methods=("open", "step"))
