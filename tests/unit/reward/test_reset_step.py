"""Environments of Gymnasium and OpenEnv, hosted as text: a real gymnasium.Env, and objects in OpenEnv's form."""

import asyncio
import inspect
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pytest

from services.reward.environments.builtin.reset_step import ResetStep
from services.reward.environments.loading import Loaded
from sluice.environments import Message, Reply
from tests.unit.reward.test_environments_built_in import row, turn

HERE = __file__


class Hunt(gymnasium.Env[str, str]):
    """Find a number below `size` in at most three steps; 0.5 for coming closer, 1 for the number."""

    def __init__(self, size: int = 8) -> None:
        self.observation_space, self.action_space = gymnasium.spaces.Text(99), gymnasium.spaces.Text(99)
        self.size, self.closed = size, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.number = int(self.np_random.integers(self.size)) if options is None else options["number"]
        self.steps = 0
        return f"Below {self.size}?", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        found = action == str(self.number)
        return "yes" if found else "no", 1.0 if found else 0.5, found, self.steps == 3, {"is_success": np.bool_(found)}

    def close(self) -> None:
        self.closed = True


@dataclass
class StepResult:
    observation: Any
    reward: float | None = None
    done: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


class Client:
    """As OpenEnv's clients: async, typed results, keywords at reset."""

    async def reset(self, **keywords: Any) -> StepResult:
        await asyncio.sleep(0)
        return StepResult({"board": f"size {keywords['size']}"})

    async def step(self, action: dict[str, Any]) -> StepResult:
        await asyncio.sleep(0)
        return StepResult({"board": "next", "left": 1}, reward=action["move"], done=action["move"] == 2)


class Odd(Client):
    def reset(self) -> list[int]:  # type: ignore[override]
        return [1, 2]

    def step(self, action: str) -> Any:  # type: ignore[override]
        return {"tuple": (1, 2, 3), "reward": (1, "x", True, False, {}), "none": None}[action]


def shout(text: str) -> str:
    if not text.isalpha():
        raise ValueError("write one word")
    return text.upper()


async def settled(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


def hosted(name: str, **settings: Any) -> ResetStep:
    return Loaded("gymnasium", {"make": f"{HERE}:{name}", **settings}).new()


def test_a_gymnasium_environment_is_played_and_its_rewards_are_summed() -> None:
    hunt = hosted("Hunt", args={"size": 4})
    (message,) = hunt.open(row(arguments={"number": 3})).messages
    assert (message.role, message.content) == ("user", "?\n\nBelow 4?")
    first = hunt.step(turn("1"))
    assert (first.messages[0].content, first.done, first.score) == ("no", False, None)
    assert hunt.unfinished().score == 0.5
    end = hunt.step(turn("3"))
    assert (end.done, end.score.score, end.score.acc) == (True, 1.5, 1.0)
    assert end.score.parts == {"steps": 2.0, "truncated": 0.0}
    assert len(hunt.VERSION.removesuffix("+1")) == 12, "a digest of this file, and the adapter's version"
    hunt.close()
    assert hunt._inner.closed
    last = hosted("Hunt", reward="last")
    last.open(row(arguments={"number": 7}))
    *_, cut = [last.step(turn("1")) for _ in range(3)]
    assert (cut.done, cut.score.score, cut.score.acc, cut.score.parts["truncated"]) == (True, 0.5, 0.0, 1.0)
    numbers = {seed: {_opened(seed) for _ in range(2)} for seed in range(1 << 40, (1 << 40) + 9)}
    assert all(len(one) == 1 for one in numbers.values()), "the row's seed alone decides"
    assert len(set.union(*numbers.values())) > 1


def _opened(seed: int) -> int:
    hunt = hosted("Hunt")
    hunt.open(row(seed=seed))
    return hunt._inner.number


async def test_an_openenv_client_is_awaited_and_reads_actions_from_json() -> None:
    client = hosted("Client", action="json", field="board")
    opening = await settled(client.open(row(arguments={"size": 3})))
    assert opening.messages[0].content == "?\n\nsize 3"
    assert client.step(turn("left")) == "error: the turn must be JSON and nothing else"
    first = await settled(client.step(turn('{"move": 1}')))
    end = await settled(client.step(turn('{"move": 2}')))
    assert isinstance(first, Reply)
    assert (first.messages[0].content, first.done, end.done, end.score.score) == ("next", False, True, 3.0)
    whole = hosted("Client", action="json")
    assert (await settled(whole.step(turn('{"move": 1}')))).messages[0].content == '{"board": "next", "left": 1}'


def test_other_observations_and_a_users_own_actions() -> None:
    odd = hosted("Odd", action=f"{HERE}:shout")
    chat = (Message(role="user", content="Go."), Message(role="assistant", content="Yes?"))
    assert odd.open(row(messages=chat)).messages[-1] == Message(role="user", content="[1, 2]")
    assert odd.step(turn("a b")) == "error: write one word"
    with pytest.raises(KeyError, match="HUM"):
        odd.step(turn("hum"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"make": "nowhere"}, "make: must be `file.py:Class`"),
        ({"make": f"{HERE}:Nobody"}, "has no class or function 'Nobody'"),
        ({"make": "fractions:Fraction"}, "makes has no method `reset`"),
        ({"make": f"{HERE}:Hunt", "reward": "mean"}, "reward: must be sum or last, got 'mean'"),
        ({"make": f"{HERE}:Hunt", "action": "yaml"}, "action: must be text, json or `file.py:function`, got 'yaml'"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        Loaded("openenv", settings).new()


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("tuple", "step must return .observation, reward, .* got tuple of 3"),
        ("none", "got NoneType"),
        ("reward", "reward must be a number, got 'x'"),
    ],
)
def test_what_no_step_returns_is_named(action: str, says: str) -> None:
    odd = hosted("Odd")
    odd.open(row())
    with pytest.raises(ValueError, match=says):
        odd.step(turn(action))
    with pytest.raises(ValueError, match="env_args: reset takes no 'size'"):
        odd.open(row(arguments={"size": 1}))
