"""Loads a transformers model without its experts: every expert parameter is None from the start and never allocated.

Called by the engine at start. `from_pretrained` builds the model on the meta device and fills what it finds there, so
an experts class that declares no parameters gets none; what the files hold of experts is never read. Weights in FP8 are
dequantised by us while they are loaded: transformers wants `accelerate` for it, and takes a grid of scales for even
blocks, which fails or is wrong where the last block is partial.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from transformers.utils import logging as transformers_logging

from flexpert_workers.checkpoint import Checkpoint
from flexpert_workers.checkpoint.dequantise import read_weight
from flexpert_workers.checkpoint.skeleton import model_class
from flexpert_workers.checkpoint.weights import PlainWeight, Weight
from flexpert_workers.engine.seams import SERVING, install


class DenseModel(NamedTuple):
    """A model that lacks only its experts.

    Attributes:
        model: The `…ForCausalLM`, in eval mode, driven through our seams.
        dense_bytes: Of all parameters and buffers, tied ones counted once.
        expert_bytes: Of expert weights resident: 0, measured.
    """

    model: Any
    dense_bytes: int
    expert_bytes: int


def load_dense(checkpoint: Checkpoint) -> DenseModel:
    """Load the dense weights of a checkpoint."""
    install()
    cls = model_class(checkpoint.architecture)
    with _without_parameters(type(checkpoint.experts)), _quiet():
        model = cls.from_pretrained(
            **_source(checkpoint),
            config=copy.deepcopy(checkpoint.config),
            dtype=checkpoint.dtype,
            attn_implementation=SERVING,
            experts_implementation=SERVING,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    model.eval().requires_grad_(False)
    _assert_materialised(model)
    experts = [model.get_submodule(path) for path in checkpoint.moe_layer_modules]
    return DenseModel(model, _resident_bytes([model]), _resident_bytes(experts))


class _LazyWeight:
    """A weight in place of a tensor of a state dict; transformers' loader indexes it with `...` when it wants it."""

    def __init__(self, checkpoint: Checkpoint, weight: Weight) -> None:
        self._checkpoint = checkpoint
        self._weight = weight

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        return read_weight(self._checkpoint.weights, self._weight, self._checkpoint.dtype)


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where `from_pretrained` is to find the weights: in the folder, or with us where they are quantised."""
    by_name = checkpoint.weights.by_name
    if all(isinstance(weight, PlainWeight) for weight in by_name.values()):
        return {"pretrained_model_name_or_path": str(checkpoint.path)}
    weights = {name: _LazyWeight(checkpoint, weight) for name, weight in by_name.items()}
    return {"pretrained_model_name_or_path": None, "state_dict": weights}


@contextmanager
def _without_parameters(cls: type[torch.nn.Module]) -> Iterator[None]:
    """While it lasts, modules of this class declare their parameters as None and count as initialised."""
    original = cls.__init__

    def __init__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        for module in self.modules():
            for name in list(module._parameters):
                module._parameters[name] = None
            module._is_hf_initialized = True  # type: ignore[assignment]

    cls.__init__ = __init__  # type: ignore[method-assign]
    try:
        yield
    finally:
        cls.__init__ = original  # type: ignore[method-assign]


@contextmanager
def _quiet() -> Iterator[None]:
    """No report of the expert keys that the model does not know, nor progress bars."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _assert_materialised(model: torch.nn.Module) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    missing = [name for name, tensor in tensors if tensor.is_meta]
    assert not missing, f"left on the meta device: {missing[:5]}"


def _resident_bytes(modules: Iterable[torch.nn.Module]) -> int:
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
