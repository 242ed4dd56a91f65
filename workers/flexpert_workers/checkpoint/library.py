"""What transformers makes of a checkpoint, built when it is first asked for.

Importing transformers' models takes seconds and most of what a `Checkpoint` is asked needs none of it: `describe` looks
at all of this once a checkpoint, later only who computes (an engine, a worker) does.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexpert_workers.checkpoint.skeleton import ExpertsModule


class Library:
    """transformers' view of the checkpoint in a folder.

    Every attribute may raise what `skeleton` raises: UnsupportedArchitecture, CorruptCheckpoint.
    """

    def __init__(self, path: Path, architecture: str) -> None:
        self.path = path
        self.architecture = architecture

    @property
    def config(self) -> Any:
        """The configuration, without what it declares of quantisation: transformers sees a model without."""
        return self._configuration[0]

    @property
    def declared_quantisation(self) -> object:
        """What the configuration declares of quantisation, or None."""
        return self._configuration[1]

    @cached_property
    def model(self) -> Any:
        """The model without weights (on meta)."""
        from flexpert_workers.checkpoint import skeleton

        return skeleton.build_skeleton(self.config, self.architecture)

    @cached_property
    def experts(self) -> "tuple[ExpertsModule, ...]":
        """The experts of each MoE layer, in order."""
        from flexpert_workers.checkpoint import skeleton

        return tuple(skeleton.experts_modules(self.model))

    @cached_property
    def _configuration(self) -> tuple[Any, object]:
        from flexpert_workers.checkpoint import skeleton

        config = skeleton.load_config(self.path)
        declared = getattr(config, "quantization_config", None)
        if declared is not None:
            del config.quantization_config
        return config, declared
