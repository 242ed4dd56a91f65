"""Finds a checkpoint's description out: by transformers' own classes, and by looking at every expert's sources.

`open_checkpoint` calls it the first time that a host sees a checkpoint, and a checkpoint that cannot be served is
refused here. Nothing here reads a weight.
"""

from typing import Any

import torch

from flexpert_workers.checkpoint import architectures, skeleton
from flexpert_workers.checkpoint.conversion import Conversion, check_complete, convert_names
from flexpert_workers.checkpoint.description import Description
from flexpert_workers.checkpoint.dtypes import SERVED, STORED
from flexpert_workers.checkpoint.files import CheckpointFiles
from flexpert_workers.checkpoint.layout import make_layout
from flexpert_workers.checkpoint.library import Library
from flexpert_workers.checkpoint.pages import check_readable
from flexpert_workers.checkpoint.quantisation import parse_quantisation
from flexpert_workers.checkpoint.recipes import Recipe, assemble
from flexpert_workers.checkpoint.skeleton import ExpertsModule
from flexpert_workers.checkpoint.weights import PlainWeight, Weights, find_weights
from flexpert_workers.errors import CheckpointError, CorruptCheckpoint, UnsupportedArchitecture


def describe(library: Library, files: CheckpointFiles, dtype: str) -> Description:
    """Describe a checkpoint, to be served in `dtype`.

    Raises:
        CorruptCheckpoint: A file contradicts itself or the configuration.
        UnsupportedArchitecture: It cannot be served; the message names it and says why.
    """
    config, architecture = library.config, library.architecture
    architectures.check_config(config, architecture)
    quantisation = parse_quantisation(library.declared_quantisation, architecture)
    weights = find_weights(files, quantisation)
    model, experts = library.model, library.experts
    architectures.check_experts(tuple(found.module for found in experts), architecture)
    architectures.check_windows(config, skeleton.attention_modules(model), architecture)
    conversion = convert_names(model, weights)
    check_complete(model, conversion, weights)
    recipes = tuple(_layer_recipes(found, conversion) for found in experts)
    served = _served_dtype(dtype, config, weights, recipes[0][0])
    description = Description(
        architecture=architecture,
        dtype=served,
        num_layers=len(experts),
        num_experts=int(experts[0].module.num_experts),  # type: ignore[arg-type]
        experts_per_token=skeleton.experts_per_token(config, architecture),
        layout=make_layout(skeleton.parameter_shapes(experts[0].module), served),
        moe_layer_modules=tuple(found.path for found in experts),
        dense_bytes=skeleton.dense_bytes(model, SERVED[served]),
        kv_bytes_per_token=skeleton.kv_bytes_per_token(model, config, SERVED[served]),
        context_length=skeleton.context_length(config, architecture),
        quantisation=quantisation,
        recipes=recipes,
        form=skeleton.form_of(experts[0].module),
    )
    _check_experts(description, experts, weights)
    return description


def _served_dtype(dtype: str, config: Any, weights: Weights, recipe: Recipe) -> str:
    """What the spec asks for; with "Auto" what the configuration says, or else what experts are stored in, or BF16
    where they are quantised.
    """
    if dtype in SERVED:
        return dtype
    if dtype != "Auto":
        raise CheckpointError(f"dtype {dtype!r} is none of Auto, {', '.join(SERVED)}")
    weight = weights.by_name[next(iter(recipe.sources.values()))[0]]
    stored = STORED.get(weight.tensor.dtype) if isinstance(weight, PlainWeight) else torch.bfloat16
    own = config.dtype if config.dtype is not None else stored
    for name, served in SERVED.items():
        if own == served:
            return name
    raise UnsupportedArchitecture(
        f"{weights.files.path}: its own dtype, {own or weight.tensor.dtype}, is not served; set model.dtype to one "
        f"of {', '.join(SERVED)}"
    )


def _layer_recipes(found: ExpertsModule, conversion: Conversion) -> tuple[Recipe, ...]:
    return tuple(conversion.recipes[f"{found.path}.{name}"] for name, _ in skeleton.parameter_shapes(found.module))


def _check_experts(description: Description, experts: tuple[ExpertsModule, ...], weights: Weights) -> None:
    """All layers are alike, and every expert's sources exist, have the right shape and can be read."""
    expected = skeleton.parameter_shapes(experts[0].module)
    for layer, found in enumerate(experts):
        if skeleton.parameter_shapes(found.module) != expected or found.module.num_experts != description.num_experts:
            raise UnsupportedArchitecture(
                f"{description.architecture} is not served: the experts of {found.path} have another shape than those "
                f"of {experts[0].path}"
            )
        for index in range(description.num_experts):
            _check_sources(description, layer, index, weights)


def _check_sources(description: Description, layer: int, index: int, weights: Weights) -> None:
    for segment, recipe in zip(description.layout.segments, description.recipes[layer], strict=True):
        source = assemble(recipe, index, description.num_experts, weights)
        check_readable(weights, source)
        if source.shape != segment.shape:
            weight = weights.by_name[source.boxes[0].tensor]
            raise CorruptCheckpoint(
                f"{weights.path(weight)}: tensor {weight.tensor.name!r} gives expert {index} of {recipe.target} "
                f"the shape {list(source.shape)}, the configuration {list(segment.shape)}"
            )
