"""A taskset of `verifiers` with two tries: the policy answers a sum, and is asked again once where it is wrong.

docs/environments.md has the commands that train on it.
"""

import verifiers.v1 as vf


class SumData(vf.TaskData):
    answer: str


class SumTask(vf.Task[SumData]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float(self.data.answer in trace.last_reply)

    @vf.metric
    async def turns(self, trace: vf.Trace) -> float:
        return float(trace.num_turns)


class Sums(vf.Taskset[SumTask]):
    def load(self):
        for a in range(8):
            yield SumTask(
                SumData(prompt=f"What is {a} + 9? Answer with the number.", answer=str(a + 9)), self.config.task
            )


class TwoTries(vf.Env[vf.SingleAgentEnvConfig]):
    async def run(self, task, agents):
        async with agents.agent.interaction(task) as chat:
            said = await chat.turn()
            if not said.terminated and task.data.answer not in said.last_reply:
                await chat.turn("That is wrong. Try again.")


__all__ = ["Sums", "TwoTries"]
