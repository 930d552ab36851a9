"""Whether the graders that a recipe names exist, found out before anything is started.

A grader is a built-in name, a dotted module, `file.py:function` or `module:function`. No code of a grader is run
(user_code.py); the reward service imports it and has the last word.
"""

from sluice.config.schema import Config
from sluice.config.user_code import did_you_mean, module_problem, problem_of
from sluice.errors import ConfigError

BUILT_IN_GRADERS = (
    *("mixadd3", "math_dapo", "math_verify", "gsm8k", "exact", "numeric", "multiple_choice", "format", "code"),
    *("judge", "reasoning_gym"),
)
"""The modules of services/reward/verifiers."""


def check_graders(config: Config) -> None:
    """Raises ConfigError with a line for each grader of reward.routes that is missing as seen from the working directory."""
    problems: list[str] = []
    for data_source, graders in config.reward.routes.items():
        for place, one in enumerate(graders):
            if problem := grader_problem(one.grader):
                which = f"[{place}]" if len(graders) > 1 else ""
                problems.append(f"reward.routes.{data_source}{which}: {problem}")
    if problems:
        raise ConfigError("\n".join(problems))


def grader_problem(grader: str) -> str | None:
    """What is wrong with a grader's name, with the nearest name that exists; None when the grader was found."""
    if grader in BUILT_IN_GRADERS:
        return None
    where, colon, function = grader.rpartition(":")
    if not colon and grader.endswith(".py"):
        return f"{grader} needs a function: `{grader}:compute_score`"
    if (colon and not (where and function.isidentifier())) or (not colon and "." not in grader):
        return (
            f"must be one of {', '.join(BUILT_IN_GRADERS)}, a dotted module name, `file.py:function` or "
            f"`module:function`, got {grader!r}{did_you_mean(grader, BUILT_IN_GRADERS)}"
        )
    return problem_of(where, function, what="function") if colon else module_problem(grader)
