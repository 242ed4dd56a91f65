"""Checkpoints in the Hugging Face layout: facts, expert pages by byte range, and which architectures are served."""

from flexpert_workers.checkpoint.checkpoint import Checkpoint, open_checkpoint, open_folder
from flexpert_workers.checkpoint.layout import ExpertLayout, Segment

__all__ = ["Checkpoint", "ExpertLayout", "Segment", "open_checkpoint", "open_folder"]
