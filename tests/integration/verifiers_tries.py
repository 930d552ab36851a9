"""A taskset of verifiers for tests: two turns, an agent without a program of its own, and a task that fails."""

import openai
import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
from verifiers.v1.dialects.chat import message_to_wire  # pyright: ignore[reportMissingImports]
from verifiers.v1.runtimes import ProgramResult  # pyright: ignore[reportMissingImports]


class TryTask(vf.Task[vf.TaskData]):
    @vf.reward(weight=2.0)
    async def length(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))

    @vf.metric
    async def turns(self, trace: vf.Trace) -> float:
        return float(trace.num_turns)


class Tries(vf.Taskset[TryTask]):
    def load(self):
        for number in range(4):
            yield TryTask(vf.TaskData(prompt=f"{number} + 9 ="), self.config.task)


class Chat(vf.Harness[vf.HarnessConfig]):
    SUPPORTS_RESUME, EXECUTES_CODE, NEEDS_CONTAINER = True, False, False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        asked = [vf.UserMessage(content=data.prompt)] if isinstance(data.prompt, str) else data.prompt
        async with openai.AsyncOpenAI(base_url=endpoint, api_key=secret) as client:
            await client.chat.completions.create(model=ctx.model, messages=[message_to_wire(one) for one in asked])
        return ProgramResult(exit_code=0, stdout="", stderr="")


class Twice(vf.Env[vf.SingleAgentEnvConfig]):
    failed = False

    async def run(self, task, agents):
        async with agents.agent.interaction(task) as chat:
            await chat.turn()
            if not Twice.failed:
                Twice.failed = True
                raise RuntimeError("once")
            await chat.turn("9 = ?")


__all__ = ["Chat", "Tries", "Twice"]
