"""`python`: a tool `run_python(code)`, which runs a program where the `code` grader runs programs: shut in, without network,
files or the service's environment, under limits of time and memory (docs/rewards.md). The policy reads what the program
prints, errors included. A turn without a call ends the episode; a grader scores it.

Settings: `cpu_s` (4), `wall_s` (8), `memory_bytes` (512 MiB), `output_chars` (4000), `isolation` (`required`; `if_possible`
runs programs also where the machine permits no isolation).
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from services.reward.environments.builtin.tool_calls import answer_calls, text_in
from services.reward.verifiers import code
from sluice.environments import Message, Opening, Reply, Row, Tool

VERSION: Final = "1"

MOST_CHARACTERS: Final = 100_000


class Python:
    """The environment."""

    tools = (
        Tool(
            name="run_python",
            description="Runs a Python program and returns what it prints.",
            parameters={
                "type": "object",
                "properties": {"code": {"type": "string", "description": "the program"}},
                "required": ["code"],
            },
        ),
    )

    def __init__(
        self,
        *,
        cpu_s: float = 4.0,
        wall_s: float = 8.0,
        memory_bytes: int = 1 << 29,
        output_chars: int = 4_000,
        isolation: Literal["if_possible", "required"] = "required",
    ) -> None:
        """Raises ValueError for limits that are not positive, RuntimeError where programs cannot be shut in but must be."""
        if not 0 < output_chars <= 100_000:
            raise ValueError(f"output_chars: must be 1 to 100000, got {output_chars}")
        self._settings = code.Settings(cpu_s=cpu_s, wall_s=wall_s, memory_bytes=memory_bytes, isolation=isolation)
        self._output_chars = output_chars
        if isolation == "required" and (problem := code.sandbox_problem()):
            raise RuntimeError(problem)

    def open(self, row: Row) -> Opening:
        """The row's chat, with the tool."""
        return Opening(tools=self.tools)

    def step(self, message: Message) -> Reply:
        """Runs the programs of the turn, one after another."""
        return answer_calls(message, {"run_python": self._run})

    def _run(self, arguments: Mapping[str, Any]) -> str:
        program = text_in(arguments, "code", most=MOST_CHARACTERS)
        try:
            ended_well, printed = code.play(program, self._settings)
        except TimeoutError:
            return f"error: the program did not end within {self._settings.wall_s:g} s"
        printed = self._cut(printed.strip())
        if ended_well:
            return printed or "(the program printed nothing)"
        return f"{printed}\nerror: the program failed, or used up its {self._settings.cpu_s:g} s of time".strip()

    def _cut(self, printed: str) -> str:
        most = self._output_chars
        if len(printed) <= most:
            return printed
        return f"{printed[: most // 2]}\n[{len(printed) - most} characters left out]\n{printed[-(most - most // 2) :]}"
