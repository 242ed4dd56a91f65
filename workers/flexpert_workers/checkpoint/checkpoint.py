"""An opened checkpoint: the facts that placement, workers and engines need, and readers for expert pages.

Workers read experts through it, the engine takes configuration and module paths from it, and `inspect` prints its
facts for the pool controller. Opening reads config.json and the safetensors headers only.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from flexpert_proto import names
from flexpert_workers.checkpoint import architectures, skeleton
from flexpert_workers.checkpoint.boxes import Assembly
from flexpert_workers.checkpoint.conversion import Conversion, Recipe, assemble, check_complete, convert_names
from flexpert_workers.checkpoint.files import CONFIG_FILE, CheckpointFiles, open_files, read_json
from flexpert_workers.checkpoint.layout import (
    ExpertLayout,
    check_readable,
    fill_segment,
    make_layout,
)
from flexpert_workers.checkpoint.quantisation import parse_quantisation
from flexpert_workers.checkpoint.weights import PlainWeight, Weights, find_weights
from flexpert_workers.errors import CheckpointError, CheckpointNotFound, CorruptCheckpoint, UnsupportedArchitecture

_SPEC_DTYPES: Mapping[str, torch.dtype] = {
    "Float32": torch.float32,
    "BFloat16": torch.bfloat16,
    "Float16": torch.float16,
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be served.

    Attributes:
        architecture: Name of the model class, e.g. "MixtralForCausalLM".
        digest: Identity of what is served (see `CheckpointFiles.digest`).
        config: transformers' configuration, without what it declares of quantisation.
        dtype: What weights are served in.
        num_layers: MoE layers; everywhere else `layer` counts these, from 0.
        num_experts: Experts per MoE layer.
        moe_layer_modules: Per MoE layer, the path of its experts' module in the model.
        dense_bytes: Bytes of all weights but the experts', at `dtype`.
        kv_bytes_per_token: Bytes that a token takes in the KV cache, over all layers, at `dtype`.
        context_length: Tokens, prompt and output together, that the model's positions allow.
    """

    path: Path
    config: Any
    architecture: str
    digest: str
    dtype: torch.dtype
    num_layers: int
    num_experts: int
    experts_per_token: int
    layout: ExpertLayout
    moe_layer_modules: tuple[str, ...]
    dense_bytes: int
    kv_bytes_per_token: int
    context_length: int
    weights: Weights
    recipes: tuple[tuple[Recipe, ...], ...]
    experts: torch.nn.Module

    @property
    def files(self) -> CheckpointFiles:
        """The files that hold the weights."""
        return self.weights.files

    def read_expert(self, layer: int, index: int) -> bytearray:
        """The page of an expert, `layout.page_bytes` long, read by byte range.

        Raises:
            CheckpointNotFound: A file is gone.
            CorruptCheckpoint: A file is truncated; file and tensor are named.
        """
        page = bytearray(self.layout.page_bytes)
        self.fill_page(layer, index, memoryview(page))
        return page

    def fill_page(self, layer: int, index: int, page: memoryview) -> None:
        """Fill a writable buffer of `layout.page_bytes` bytes with an expert; the bytes between segments stay."""
        for segment, source in zip(self.layout.segments, self.sources(layer, index), strict=True):
            fill_segment(self.weights, segment, source, page)

    def sources(self, layer: int, index: int) -> tuple[Assembly, ...]:
        """Per segment of the layout, which bytes of which stored tensors it is made of."""
        return tuple(assemble(recipe, index, self.num_experts, self.weights) for recipe in self.recipes[layer])

    def experts_module(self) -> torch.nn.Module:
        """A new instance of the architecture's own experts class on meta: its flags, gate and activation."""
        return copy.deepcopy(self.experts)


def open_checkpoint(source: str, dtype: str = "Auto") -> Checkpoint:
    """Open the checkpoint that `source` names, to be served in `dtype`.

    Args:
        source: "file:///folder" or "pvc://claim/folder" (see `names.model_path`).
        dtype: "Float32", "BFloat16", "Float16", or "Auto" for the checkpoint's own.

    Raises:
        CheckpointNotFound: No such folder, or no safetensors in it.
        CorruptCheckpoint: A file contradicts itself or the configuration.
        UnsupportedArchitecture: It cannot be served; the message names it and says why.
    """
    path = checkpoint_path(source)
    raw_config = read_json(path / CONFIG_FILE)
    architecture = _architecture(path, raw_config)
    architectures.check_name(architecture)
    config = skeleton.load_config(path)
    architectures.check_config(config, architecture)
    architectures.check_recorded(architecture)
    quantisation = parse_quantisation(_take_quantisation(config), architecture)
    files = open_files(path)
    weights = find_weights(files, quantisation)
    model = skeleton.build_skeleton(config, architecture)
    experts = tuple(skeleton.experts_modules(model))
    architectures.check_experts(tuple(found.module for found in experts), architecture)
    architectures.check_windows(config, skeleton.attention_modules(model), architecture)
    conversion = convert_names(model, weights)
    check_complete(model, conversion, weights)
    recipes = tuple(_layer_recipes(found, conversion) for found in experts)
    served = _served_dtype(dtype, config, weights, recipes[0][0])
    canonical = json.dumps(raw_config, sort_keys=True).encode()
    opened = Checkpoint(
        path=path,
        config=config,
        architecture=architecture,
        digest=files.digest(canonical, str(served)),
        dtype=served,
        num_layers=len(experts),
        num_experts=int(experts[0].module.num_experts),  # type: ignore[arg-type]
        experts_per_token=skeleton.experts_per_token(config, architecture),
        layout=make_layout(skeleton.parameter_shapes(experts[0].module), served),
        moe_layer_modules=tuple(found.path for found in experts),
        dense_bytes=skeleton.dense_bytes(model, served),
        kv_bytes_per_token=skeleton.kv_bytes_per_token(model, config, served),
        context_length=skeleton.context_length(config, architecture),
        weights=weights,
        recipes=recipes,
        experts=experts[0].module,
    )
    _check_experts(opened, experts)
    return opened


def checkpoint_path(source: str) -> Path:
    """The folder that a source names, whether or not it exists.

    Raises:
        CheckpointNotFound: The source names no folder on this node.
    """
    try:
        return names.model_path(source)
    except names.ModelSourceError as error:
        raise CheckpointNotFound(str(error)) from error


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    match config.get("architectures"):
        case [str(name), *_]:
            return name
    raise CorruptCheckpoint(f"{path / CONFIG_FILE} does not name its architecture (field architectures)")


def _take_quantisation(config: Any) -> object:
    """What the configuration declares, taken out of it: transformers sees a model that is not quantised."""
    declared = getattr(config, "quantization_config", None)
    if declared is not None:
        del config.quantization_config
    return declared


def _served_dtype(dtype: str, config: Any, weights: Weights, recipe: Recipe) -> torch.dtype:
    """What the spec asks for; with "Auto" what the configuration says, or else what experts are stored in, or BF16
    where they are quantised.
    """
    if dtype in _SPEC_DTYPES:
        return _SPEC_DTYPES[dtype]
    if dtype != "Auto":
        raise CheckpointError(f"dtype {dtype!r} is none of Auto, {', '.join(_SPEC_DTYPES)}")
    weight = weights.by_name[next(iter(recipe.sources.values()))[0]]
    stored = weight.tensor.torch_dtype if isinstance(weight, PlainWeight) else torch.bfloat16
    own = config.dtype if config.dtype is not None else stored
    if own not in _SPEC_DTYPES.values():
        raise UnsupportedArchitecture(
            f"{weights.files.path}: its own dtype, {own or weight.tensor.dtype}, is not served; set model.dtype to one "
            f"of {', '.join(_SPEC_DTYPES)}"
        )
    return cast(torch.dtype, own)


def _layer_recipes(found: skeleton.ExpertsModule, conversion: Conversion) -> tuple[Recipe, ...]:
    return tuple(conversion.recipes[f"{found.path}.{name}"] for name, _ in skeleton.parameter_shapes(found.module))


def _check_experts(checkpoint: Checkpoint, experts: tuple[skeleton.ExpertsModule, ...]) -> None:
    """All layers are alike, and every expert's sources exist, have the right shape and can be read."""
    expected = skeleton.parameter_shapes(experts[0].module)
    for layer, found in enumerate(experts):
        if skeleton.parameter_shapes(found.module) != expected or found.module.num_experts != checkpoint.num_experts:
            raise UnsupportedArchitecture(
                f"{checkpoint.architecture} is not served: the experts of {found.path} have another shape than those "
                f"of {experts[0].path}"
            )
        for index in range(checkpoint.num_experts):
            _check_sources(checkpoint, layer, index)


def _check_sources(checkpoint: Checkpoint, layer: int, index: int) -> None:
    sources = checkpoint.sources(layer, index)
    for segment, source, recipe in zip(checkpoint.layout.segments, sources, checkpoint.recipes[layer], strict=True):
        check_readable(checkpoint.weights, source)
        if source.shape != segment.shape:
            weight = checkpoint.weights.by_name[source.boxes[0].tensor]
            raise CorruptCheckpoint(
                f"{checkpoint.weights.path(weight)}: tensor {weight.tensor.name!r} gives expert {index} of "
                f"{recipe.target} the shape {list(source.shape)}, the configuration {list(segment.shape)}"
            )
