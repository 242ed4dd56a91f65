"""How each parameter of a model comes from stored weights, by transformers' own conversion mapping.

`describe` asks once for every parameter's `Recipe`. The names are matched by transformers' functions, in the order in
which its loader applies them; its operations are written down as plain ones.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import core_model_loading as loading
from transformers.conversion_mapping import get_model_conversion_mapping

from flexpert_workers.checkpoint import recipes
from flexpert_workers.checkpoint.recipes import Operation, Recipe
from flexpert_workers.checkpoint.weights import Weights
from flexpert_workers.errors import CorruptCheckpoint


@dataclass(frozen=True)
class Conversion:
    """Every parameter that the files give, by its name in the model."""

    recipes: Mapping[str, Recipe]
    targets: frozenset[str]


def convert_names(model: Any, weights: Weights) -> Conversion:
    """Match the stored weights with the parameters of `model` (on meta), as transformers' loader does.

    Source of the method: `convert_and_load_state_dict_in_model` of transformers' `core_model_loading`.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [transform for transform in mapping if isinstance(transform, loading.WeightRenaming)]
    converters = [transform for transform in mapping if isinstance(transform, loading.WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()
    collected: dict[str, dict[str, list[str]]] = {}
    used: dict[str, Any] = {}
    targets: set[str] = set()
    for stored in sorted(weights.by_name, key=loading.dot_natural_key):
        name, pattern = loading.rename_source_key(stored, renamings, converters, model.base_model_prefix, state)
        if name not in state and stored in state:
            name, pattern = loading.rename_source_key(stored, [], [], model.base_model_prefix, state)
        if name not in state:
            continue
        converter = by_pattern[pattern] if pattern is not None else None
        used.setdefault(name, converter)
        collected.setdefault(name, {}).setdefault(pattern or stored, []).append(stored)
        targets |= _all_targets(name, converter)
    found = {name: _recipe(name, sources, used[name]) for name, sources in collected.items()}
    return Conversion(found, frozenset(targets))


def check_complete(model: Any, conversion: Conversion, weights: Weights) -> None:
    """Every parameter of `model` is stored, or tied to one that is, or one that the class says may be missing.

    Raises:
        CorruptCheckpoint: Naming the first parameter that is not.
    """
    optional = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    for name, _ in model.named_parameters():
        stored = name in conversion.targets or model.all_tied_weights_keys.get(name) in conversion.targets
        if not stored and not any(pattern.search(name) for pattern in optional):
            raise CorruptCheckpoint(f"{weights.files.path}: no stored tensor gives {name}")


def plain_operations(operations: Iterable[Any]) -> tuple[Operation, ...]:
    """The operations of a `WeightConverter` as ours."""
    return tuple(_plain_operation(operation) for operation in operations)


def _plain_operation(operation: Any) -> Operation:
    match operation:
        case loading.MergeModulelist(dim=0):
            return recipes.Merge()
        case loading.Concatenate(dim=dim) if dim >= 1 and operation.num_shards_attribute is None:
            return recipes.Concatenate(dim)
        case loading.Transpose(dim0=first, dim1=second) if min(first, second) >= 1 and not operation.check_dims:
            return recipes.Transpose(first, second)
        case loading.Interleave(dim=dim) if dim >= 1 and not operation.inverse:
            return recipes.Deinterleave(dim)
    return recipes.Unserved(repr(operation))


def _all_targets(name: str, converter: Any) -> set[str]:
    if converter is None:
        return {name}
    first = converter.target_patterns[0]
    return {name.replace(first, other) for other in converter.target_patterns}


def _recipe(name: str, sources: Mapping[str, list[str]], converter: Any) -> Recipe:
    if converter is None:
        return Recipe(name, {pattern: tuple(names) for pattern, names in sources.items()}, ())
    ordered = {pattern: tuple(sources[pattern]) for pattern in converter.source_patterns if pattern in sources}
    return Recipe(name, ordered, plain_operations(converter.operations))
