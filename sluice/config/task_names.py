"""Names under `data.train_files`, `data.val_files` and `eval.sets` that are a task's and no file's."""


def is_task(name: str) -> bool:
    """Whether a task makes the prompts, without end, as `mixadd3:SPLIT` and `reasoning-gym:TASK` do."""
    return name.startswith(("mixadd3:", "products:", "reasoning-gym:"))
