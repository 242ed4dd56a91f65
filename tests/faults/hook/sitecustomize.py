"""Puts the pool controller's links behind the gate, in whichever process of the laptop it runs.

Python imports a module of this name at its start. Ray starts the controller, so there is nobody else to tell it.
"""

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

LINKS = "flexpert_workers.pool.links"
FOLDER = os.environ.get("FAULTS_GATE", "")


class _Gating(Loader):
    """Loads the module of links as it is, and puts a gate in front of what it makes."""

    def __init__(self, spec):
        self._spec = spec

    def create_module(self, spec):
        return module_from_spec(self._spec)

    def exec_module(self, module):
        self._spec.loader.exec_module(module)
        from faults_gate import gated

        module.ControlLink = gated(Path(FOLDER), module.ControlLink)


class _Finder(MetaPathFinder):
    """Finds that module alone."""

    def find_spec(self, name, path, target=None):
        if name != LINKS:
            return None
        spec = PathFinder.find_spec(name, path)
        found = PathFinder.find_spec(name, path)
        spec.loader = _Gating(found)
        return spec


if FOLDER:
    sys.meta_path.insert(0, _Finder())
