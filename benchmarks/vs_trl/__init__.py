"""A race of Sluice against TRL's GRPOTrainer on one machine: `python -m benchmarks.vs_trl`.

Two tasks (tasks.py): that of the demo, and SmolLM2-135M on sums (`--task sums`). Same base model, prompts, grader, overlong
shaping, clip, optimizer and batch sizes on both sides (terms.py). Each side trains in its own process tree and environment
and leaves records of one form (records.py); one evaluator reads the weights of both, off the clock (evaluate.py). TRL's
learning rate and threads are tuned first, Sluice's recipe is not.

TRL generates with plain transformers. What else it offers did not work on a CPU (TRL 1.16.0): colocated vLLM 0.32 (TRL
names up to 0.31 as supported) starts, but the first weight update fails, since vLLM's CPU layers keep no `weight_loader`;
transformers' continuous batching had not finished one batch of 160 completions after 100 s.
"""
