"""Episodes, of rows with an environment: how long they are, what they call, and how long their environments take."""

from sluice.telemetry.metric import Metric, entry

EPISODES: tuple[Metric, ...] = (
    entry(
        "episode/turns_mean",
        "turns",
        "coordinator",
        "turns that the policy took in an episode",
        "below `rollout.max_turns`",
        "at the limit episodes are cut before they are done: raise `rollout.max_turns`",
    ),
    entry(
        "episode/tool_calls_mean",
        "calls",
        "coordinator",
        "calls of tools in an episode",
        "above 0 where the task needs a tool",
        "near 0: the policy does not use its tools; look at an episode with `sluice explain`, warm up on examples",
    ),
    entry(
        "episode/tool_use",
        "fraction",
        "coordinator",
        "share of the generated episodes in which the policy called a tool",
        "rises where the task needs a tool",
        "as for `eval/tool_use`, which reads held-out prompts",
    ),
    entry(
        "episode/observed_mean_tokens",
        "tokens",
        "coordinator",
        "tokens of an episode that came from environment and template, after the prompt",
        "small beside `data.max_episode_tokens`",
        "let the environment answer in fewer words, or raise `data.max_episode_tokens`",
    ),
    entry(
        "episode/environment_s",
        "s",
        "coordinator",
        "how long an environment took to answer a turn",
        "below `rollout.turn_timeout_s`, by far",
        "a faster environment, or more `episodes` of it, which wait beside each other",
    ),
    entry(
        "episode/restarts",
        "episodes",
        "coordinator",
        "episodes that began again, because their environment failed or they became too old",
        "0",
        "the coordinator's log says why (`episode_failed`)",
    ),
)
