"""Stands on the module path of a laptop's Ray nodes before the real `aiohttp_cors`, which only Ray's dashboard uses.

Ray takes an installation without it for its minimal packaging (`pip install ray`): the agent that every node runs
then serves neither metrics nor jobs nor a web port, starts in a fraction of the time, and all else is the same.
"""

raise ModuleNotFoundError("aiohttp_cors is left out on a laptop, so that Ray's agents start in their minimal form")
