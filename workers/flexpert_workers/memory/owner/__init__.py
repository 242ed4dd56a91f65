"""The page owner: one process per memory domain, which makes, fills, verifies, seals and lends pages."""

from flexpert_workers.memory.owner.config import OwnerConfig

__all__ = ["OwnerConfig"]
