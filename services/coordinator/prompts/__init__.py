"""Where prompts come from, their order, and their rendering for the model. Pure: no sockets, no clock, no torch."""

from services.coordinator.prompts.render import Prompt
from services.coordinator.prompts.stream import PromptStream

__all__ = ["Prompt", "PromptStream"]
