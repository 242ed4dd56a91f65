"""Checkpoints that are elsewhere: on a hub or in an object store, brought into a cache that the node keeps.

Imports neither torch nor transformers, nor a client of a hub or store before one is asked for.
"""

from flexpert_workers.sources.cache import Cache
from flexpert_workers.sources.local import checkpoint_folder, wait_until_here
from flexpert_workers.sources.location import Remote, parse_remote, pinned_source

__all__ = ["Cache", "Remote", "checkpoint_folder", "parse_remote", "pinned_source", "wait_until_here"]
