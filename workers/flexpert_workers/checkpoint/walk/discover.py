"""Finds the model modules of the installed transformers whose experts implement its experts interface."""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

_DECORATOR = re.compile(r"^@use_experts_implementation", re.MULTILINE)
_CLASS = re.compile(r"^class (\w+For[A-Z]\w+)\(", re.MULTILINE)
_GENERATES = re.compile(r"For(CausalLM|ConditionalGeneration)$")


@dataclass(frozen=True)
class Candidate:
    """A model class with a head: the module that defines it ("mixtral"), and its name."""

    module: str
    architecture: str
    python_module: str

    def load_class(self) -> Any:
        """Import it."""
        return getattr(importlib.import_module(self.python_module), self.architecture)


def candidates() -> tuple[Candidate, ...]:
    """Of every such module the classes that generate; of a module that has none, whatever heads it has."""
    return tuple(candidate for path in _modeling_files() for candidate in _candidates_of(path))


def _modeling_files() -> Iterator[Path]:
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        if _DECORATOR.search(path.read_text()):
            yield path


def _candidates_of(path: Path) -> list[Candidate]:
    module = path.parent.name
    names = [name for name in _CLASS.findall(path.read_text()) if "PreTrainedModel" not in name]
    chosen = [name for name in names if _GENERATES.search(name)] or names
    return [Candidate(module, name, f"transformers.models.{module}.{path.stem}") for name in sorted(chosen)]
