"""What an environment is made of: what it is asked, and what it answers (docs/environments.md). Standard library alone.

An environment is a class, or a function that makes an object, `file.py:Class`. A run makes one object for each episode, with
the environment's settings as keywords, and calls the object's methods, which may be async:

- `open(row)` -> Opening | list of messages | None: chat and tools with which the policy begins; None for the row's chat.
- `step(message)` -> Reply | str: what the policy reads next, or that the episode is done.
- `unfinished()`, if there is one -> Score: of an episode that the policy's last turn leaves unfinished; 0 without it.
- `close()`, if there is one: always called, also after a failure of `step`.

A class attribute `scores = True` says that episodes end with a score; otherwise a grader scores the last turn. `tools` (a
list of Tool) may be a class attribute in place of `Opening.tools`, and `VERSION` an attribute of class or module.
"""

from sluice.environments.types import Message, Opening, Reply, Row, Score, Tool, ToolCall

__all__ = ["Message", "Opening", "Reply", "Row", "Score", "Tool", "ToolCall"]
