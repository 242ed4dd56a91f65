"""An opened checkpoint: the facts that placement, workers and engines need, and readers for expert pages.

Workers read experts through it, the engine takes configuration and module paths from it, and `inspect` prints its
facts for the pool controller. Opening reads config.json and the safetensors headers only; where this host has opened
the same checkpoint before, neither torch nor transformers is imported until something asks for what is theirs.
"""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexpert_workers.checkpoint import architectures
from flexpert_workers.checkpoint.boxes import Assembly
from flexpert_workers.checkpoint.description import Description, DescriptionCache, cache_folder, description_key
from flexpert_workers.checkpoint.files import CONFIG_FILE, CheckpointFiles, open_files, read_json, unpaced
from flexpert_workers.checkpoint.form import ExpertsForm
from flexpert_workers.checkpoint.layout import ExpertLayout
from flexpert_workers.checkpoint.library import Library
from flexpert_workers.checkpoint.pages import fill_segment
from flexpert_workers.checkpoint.recipes import Recipe, assemble
from flexpert_workers.checkpoint.weights import Weights, find_weights
from flexpert_workers.errors import CorruptCheckpoint
from flexpert_workers.sources.local import checkpoint_folder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be served.

    Attributes:
        architecture: Name of the model class, e.g. "MixtralForCausalLM".
        digest: Identity of what is served: the configuration, the dtype served and `CheckpointFiles.fingerprint`.
        dtype_name: What weights are served in, as a spec names it, e.g. "BFloat16".
        num_layers: MoE layers; everywhere else `layer` counts these, from 0.
        num_experts: Experts per MoE layer.
        moe_layer_modules: Per MoE layer, the path of its experts' module in the model.
        dense_bytes: Bytes of all weights but the experts', at `dtype`.
        kv_bytes_per_token: Bytes that a token takes in the KV cache, over all layers, at `dtype`.
        context_length: Tokens, prompt and output together, that the model's positions allow.
        recipes: Per MoE layer, per segment of the layout, how it is made.
        form: What the experts compute between their products; None when only their class can tell.
        library: What transformers makes of it.
    """

    path: Path
    architecture: str
    digest: str
    dtype_name: str
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
    form: ExpertsForm | None
    library: Library

    @property
    def dtype(self) -> "torch.dtype":
        """What weights are served in; imports torch."""
        from flexpert_workers.checkpoint.dtypes import SERVED

        return SERVED[self.dtype_name]

    @property
    def config(self) -> Any:
        """The configuration as transformers reads it, without what it says of quantisation; imports transformers."""
        return self.library.config

    @property
    def experts(self) -> "torch.nn.Module":
        """The experts of the first MoE layer, on meta; imports the model's own module of transformers."""
        return self.library.experts[0].module

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

    def fill_page(self, layer: int, index: int, page: memoryview, pace: Callable[[int], None] = unpaced) -> None:
        """Fill a writable buffer of `layout.page_bytes` bytes with an expert; the bytes between segments stay.

        Args:
            layer: Of the expert.
            index: In its layer.
            page: The buffer.
            pace: Called with a number of bytes, a few MiB at most, before they are read; what it raises ends this.
        """
        for segment, source in zip(self.layout.segments, self.sources(layer, index), strict=True):
            fill_segment(self.weights, segment, source, page, pace)

    def sources(self, layer: int, index: int) -> tuple[Assembly, ...]:
        """Per segment of the layout, which bytes of which stored tensors it is made of."""
        return tuple(assemble(recipe, index, self.num_experts, self.weights) for recipe in self.recipes[layer])

    def experts_module(self) -> "torch.nn.Module":
        """The flags, the gate and the activation of the architecture's experts: a new instance of their own class on
        meta, or, where they are plain, one that computes the same and needs torch alone.
        """
        if self.form is None:
            return copy.deepcopy(self.experts)
        from flexpert_workers.checkpoint.plain import PlainExperts

        return PlainExperts(self.form)


def open_checkpoint(source: str, dtype: str = "Auto") -> Checkpoint:
    """Open the checkpoint that `source` names, to be served in `dtype`.

    Args:
        source: "file:///folder" or "pvc://claim/folder" (see `names.model_path`), or a remote one that is pinned and
            lies whole in this node's cache (see `sources`).
        dtype: "Float32", "BFloat16", "Float16", or "Auto" for the checkpoint's own.

    Raises:
        CheckpointNotFound: No such folder, or no safetensors in it.
        CorruptCheckpoint: A file contradicts itself or the configuration.
        UnsupportedArchitecture: It cannot be served; the message names it and says why.
    """
    return open_folder(checkpoint_folder(source), dtype)


def open_folder(path: Path, dtype: str = "Auto") -> Checkpoint:
    """Open the checkpoint in a folder; see `open_checkpoint`."""
    config = read_json(path / CONFIG_FILE)
    architecture = _architecture(path, config)
    architectures.check_name(architecture)
    architectures.check_recorded(architecture)
    files = open_files(path)
    canonical, fingerprint = json.dumps(config, sort_keys=True).encode(), files.fingerprint()
    library = Library(path, architecture)
    cache = DescriptionCache(cache_folder(os.environ))
    key = description_key(canonical, fingerprint, dtype, os.environ)
    description = cache.load(key)
    if description is None:
        description = _find_out(library, files, dtype)
        if read_json(path / CONFIG_FILE) == config:
            cache.store(key, description)
    return Checkpoint(
        path=path,
        architecture=architecture,
        digest=hashlib.sha256(canonical + description.dtype.encode() + fingerprint).hexdigest()[:32],
        dtype_name=description.dtype,
        num_layers=description.num_layers,
        num_experts=description.num_experts,
        experts_per_token=description.experts_per_token,
        layout=description.layout,
        moe_layer_modules=description.moe_layer_modules,
        dense_bytes=description.dense_bytes,
        kv_bytes_per_token=description.kv_bytes_per_token,
        context_length=description.context_length,
        weights=find_weights(files, description.quantisation),
        recipes=description.recipes,
        form=description.form,
        library=library,
    )


def _find_out(library: Library, files: CheckpointFiles, dtype: str) -> Description:
    """Imports torch and transformers."""
    from flexpert_workers.checkpoint.describe import describe

    return describe(library, files, dtype)


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    match config.get("architectures"):
        case [str(name), *_]:
            return name
    raise CorruptCheckpoint(f"{path / CONFIG_FILE} does not name its architecture (field architectures)")
