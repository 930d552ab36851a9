"""An engine with a paged KV cache in virtual time: blocks, shared prompts, preemption and recomputation as vLLM has them.

A step advances every running sample by one token. A sample without room for its next block puts back the newest one, which
loses its blocks; put-back samples start again before new ones, with everything recomputed but a prompt that is still held by
another sample of the group. No step in which one was put back starts any. The time of a step is linear in what the step does.
"""

from collections import Counter, deque
from dataclasses import dataclass

BLOCK_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds."""

    step_s: float = 0.012
    """Of a step whatever runs: the weights are read. 7B in bfloat16 at 1.2 TB/s."""
    sample_s: float = 20e-6
    """For each sample that gets a token."""
    prompt_token_s: float = 30e-6
    """For each token that is computed without being sampled: 7B at 470 TFLOP/s."""
    cached_token_s: float = 40e-9
    """For each token of the cache that attention reads: 56 KB at 1.4 TB/s."""


@dataclass(kw_only=True, slots=True, eq=False)
class Simulated:
    """One sample."""

    group: int
    prompt_tokens: int
    tokens: int
    """The completion's length, which the engine does not know."""
    max_tokens: int
    generated: int = 0

    @property
    def own_blocks(self) -> int:
        """Blocks for everything but the prompt, which the group shares, and for the next token."""
        return self.generated // BLOCK_TOKENS + 1

    @property
    def prompt_blocks(self) -> int:
        return -(-self.prompt_tokens // BLOCK_TOKENS)


class PagedEngine:
    """One engine: `add`, then `step` until nothing runs or waits; `limit` may change between two steps."""

    def __init__(self, *, blocks: int, capacity: int, costs: Costs = Costs(), step_tokens: int = 8192) -> None:
        self.capacity = self.limit = capacity
        self.preemptions = 0
        self.now_s = 0.0
        self.kv_use = 0.0
        self._blocks, self._free, self._costs, self._step_tokens = blocks, blocks, costs, step_tokens
        self.running: list[Simulated] = []
        self.waiting: deque[Simulated] = deque()
        self._holders: Counter[int] = Counter()
        """Running samples of each group, which share the prompt's blocks."""

    def add(self, sample: Simulated) -> None:
        """Queues a sample."""
        self.waiting.append(sample)

    def step(self) -> None:
        """One token for every running sample."""
        before = self.preemptions
        self._grow()
        computed = self._start() if self.preemptions == before else 0
        held = sum(sample.prompt_tokens + sample.generated for sample in self.running)
        self.now_s += self._costs.step_s + self._costs.sample_s * len(self.running)
        self.now_s += self._costs.prompt_token_s * computed + self._costs.cached_token_s * held
        for sample in self.running:
            sample.generated += 1
        ended = [sample for sample in self.running if sample.generated >= sample.tokens]
        for sample in ended:
            self.running.remove(sample)
            self._release(sample)
        self.kv_use = 1 - self._free / self._blocks

    def _grow(self) -> None:
        """A block for every running sample whose blocks are full; puts back the newest samples where there is none."""
        index = 0
        while index < len(self.running):
            sample = self.running[index]
            if sample.generated % BLOCK_TOKENS == 0:
                while self._free == 0:
                    self._put_back(self.running.pop())
                    if index >= len(self.running):
                        return
                self._free -= 1
            index += 1

    def _put_back(self, sample: Simulated) -> None:
        full = sample.generated % BLOCK_TOKENS == 0  # its next block was not given out yet
        self._release(sample, blocks=_blocks_of(sample.generated) if full else sample.own_blocks)
        self.preemptions += 1
        self.waiting.appendleft(sample)

    def _release(self, sample: Simulated, *, blocks: int | None = None) -> None:
        self._free += _blocks_of(sample.generated) if blocks is None else blocks
        self._holders[sample.group] -= 1
        if not self._holders[sample.group]:
            self._free += sample.prompt_blocks

    def _start(self) -> int:
        """Starts what waits, in order, while there is room; returns the tokens that have to be computed."""
        computed = 0
        while self.waiting and len(self.running) < min(self.limit, self.capacity):
            sample = self.waiting[0]
            shares = self._holders[sample.group] > 0
            blocks = sample.own_blocks + (0 if shares else sample.prompt_blocks)
            tokens = sample.generated + (0 if shares else sample.prompt_tokens)
            if blocks > self._free or (computed and computed + tokens > self._step_tokens):
                break
            self.waiting.popleft()
            self._free -= blocks
            self._holders[sample.group] += 1
            self.running.append(sample)
            computed += tokens
        return computed


def _blocks_of(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
