"""Runs one forward pass: a batch in, the logits of the rows that get a token out.

Called by the loop. It owns the model's seams: attention reads the batch that is set here, experts go to the dispatcher.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flexpert_workers.engine.attention import attend
from flexpert_workers.engine.batch import Batch, build
from flexpert_workers.engine.cache import CachePlan, LayerShape, PagedCache
from flexpert_workers.engine.paged import PagedAttention
from flexpert_workers.engine.recorder import RoutingRecorder
from flexpert_workers.engine.scheduler import Scheduled
from flexpert_workers.engine.seams import ExpertDispatcher, PassHooks, bind, expander_of, variant_of


class Runner:
    """A model, its cache and its dispatcher.

    Attributes:
        recorder: Notes what the router chooses, while somebody records.
    """

    def __init__(
        self,
        model: Any,
        moe_layer_modules: Sequence[str],
        shapes: Mapping[int, LayerShape],
        plan: CachePlan,
        block_tokens: int,
        dispatcher: ExpertDispatcher,
        kernels: Mapping[int, PagedAttention],
    ) -> None:
        self.cache = PagedCache(shapes, plan.num_blocks, block_tokens)
        self._kernels = kernels
        self._model = model
        self._plan = plan
        self._batch: Batch | None = None
        self._dispatcher = dispatcher
        self._moe_layer_modules = tuple(moe_layer_modules)
        self.recorder: RoutingRecorder | None = None
        self.record(None)

    def record(self, recorder: RoutingRecorder | None) -> None:
        """Have all passes from now on noted, or none."""
        self.recorder = recorder
        dispatch = self._dispatcher.dispatch if recorder is None else recorder.around(self._dispatcher)
        bind(self._model, PassHooks(self._attend, dispatch), self._moe_layer_modules)

    @torch.inference_mode()
    def run(self, scheduled: Sequence[Scheduled]) -> tuple[Batch, torch.Tensor]:
        """Compute a pass.

        Returns:
            The batch, and the logits [sampled, vocabulary] of `batch.sampled`.

        Raises:
            PassAbandoned: Experts did not answer; nothing was committed, the pass can be run again.
        """
        self._batch = batch = build(scheduled, self.cache.block_tokens, self._plan.gather_tokens)
        self.cache.slots = batch.slots
        if self.recorder is not None:
            self.recorder.begin(batch.scheduled)
        logits = self._model(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=batch.logit_rows,
        ).logits
        return batch, logits[0]

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        arguments: Mapping[str, Any],
    ) -> torch.Tensor:
        assert self._batch is not None
        layer: int = module.layer_idx  # type: ignore[assignment]
        return attend(
            self.cache,
            self._batch,
            layer,
            query,
            key,
            value,
            variant_of(arguments),
            expander_of(module),
            self._kernels.get(layer),
        )
