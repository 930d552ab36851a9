"""Where prompts come from, in which order, and what a model sees of them. Pure: no sockets, no clock, no torch."""

from services.coordinator.prompts.render import Prompt
from services.coordinator.prompts.stream import PromptStream

__all__ = ["Prompt", "PromptStream"]
