"""Checkpoints in the Hugging Face layout: facts, expert pages by byte range, and which architectures are served."""

from flexpert_workers.checkpoint.checkpoint import Checkpoint, checkpoint_path, open_checkpoint
from flexpert_workers.checkpoint.layout import ExpertLayout, Segment

__all__ = ["Checkpoint", "ExpertLayout", "Segment", "checkpoint_path", "open_checkpoint"]
