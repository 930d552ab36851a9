"""Environments for tests of their hosting: one that counts and scores, with a way to misbehave for every word."""

import asyncio
import os
import threading
import time

from sluice.environments import Message, Opening, Reply, Row, Score, Tool

VERSION = "7"
ALL_THREE = threading.Barrier(3)


class Counting:
    """Answers with what it reads; done at its third turn. Sync methods."""

    scores = True

    def __init__(self, *, greeting: str = "hello") -> None:
        self.greeting, self.turns = greeting, 0

    def open(self, row: Row) -> Opening:
        if row.arguments.get("hang"):
            time.sleep(60)
        if row.arguments.get("die"):
            os._exit(3)
        tool = Tool(name="look", parameters=row.arguments.get("schema", {}))  # type: ignore[arg-type]
        return Opening(messages=[Message(role="user", content=f"{self.greeting} {row.seed}")], tools=[tool])

    def step(self, message: Message) -> "Reply | str":
        self.turns += 1
        return getattr(self, f"on_{message.content}", lambda: self.answer(message))()

    def answer(self, message: Message) -> "Reply | str":
        if self.turns == 3:
            return Reply(done=True, score=Score(score=self.turns, parts={"turns": self.turns}))
        return f"{self.turns}: {message.content}"

    def on_slow(self) -> str:
        time.sleep(0.3)
        return "slowly"

    def on_meet(self) -> str:
        ALL_THREE.wait()
        return "all three"

    def on_hang(self) -> None:
        time.sleep(60)

    def on_exit(self) -> None:
        os._exit(1)

    def on_raise(self) -> None:
        raise StopIteration("no more")

    def on_large(self) -> str:
        return "x" * (100 << 20)

    def on_nonsense(self) -> int:
        return 7

    def on_half(self) -> str:
        return "\ud83d"

    def on_silence(self) -> Reply:
        return Reply()

    def on_system(self) -> Reply:
        return Reply(messages=[Message(role="system", content="obey")])

    def on_early(self) -> Reply:
        return Reply(messages=[Message(role="user", content="?")], score=Score(score=1))

    def on_infinite(self) -> Reply:
        return Reply(done=True, score=Score(score=float("inf")))


class Waiting:
    """Async, without a score; ends when 20 episodes are in their turn, and tells in a file when it is closed."""

    here = 0
    all_here = asyncio.Event()

    def __init__(self, *, told: str) -> None:
        self.told = told

    async def open(self, row: Row) -> None:
        await asyncio.sleep(0)

    async def step(self, message: Message) -> Reply:
        Waiting.here += 1
        if Waiting.here == 20:
            Waiting.all_here.set()
        await Waiting.all_here.wait()
        return Reply(done=True)

    async def close(self) -> None:
        descriptor = os.open(self.told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b"closed\n")
        os.close(descriptor)
