"""Notes which experts the router chooses, pass by pass, while somebody records.

The runner calls `begin` before a pass, the model what `around` gives for every MoE layer, and the engine `commit` once
the pass is kept; what belongs to a pass that was abandoned, or broke, is never given on. Used from the engine's thread
only. An engine that nobody records has no recorder, and its modules call the dispatcher itself.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flexpert_workers.engine.request import Request
from flexpert_workers.engine.scheduler import Scheduled
from flexpert_workers.engine.seams import ExpertDispatcher

Chosen = npt.NDArray[np.uint16]


class RoutedTokens(NamedTuple):
    """The new tokens of one pass.

    Attributes:
        sequences: Number of the sequence that each stretch of tokens continues.
        lengths: Tokens of each stretch.
        experts: [tokens, layers, k] what they chose, highest weight first; `num_experts` and above mean none.
    """

    sequences: tuple[int, ...]
    lengths: tuple[int, ...]
    experts: Chosen


class _Sequence:
    """How far a request is recorded."""

    __slots__ = ("number", "recorded")

    def __init__(self, number: int, recorded: int) -> None:
        self.number = number
        self.recorded = recorded


class RoutingRecorder:
    """Records until it has as many tokens as it is to have.

    A token counts once: what a preempted request computes again is left out. A request goes on as another sequence
    where tokens between are missing, because the cache had them or nobody took them.

    Args:
        num_layers: MoE layers.
        tokens: To record.
        emit: Takes a pass's tokens, at once; False means that it has no room for them.
    """

    def __init__(self, num_layers: int, tokens: int, emit: Callable[[RoutedTokens], bool]) -> None:
        self.remaining = tokens
        self._num_layers = num_layers
        self._emit = emit
        self._scheduled: tuple[tuple[Request, int, int], ...] = ()
        self._chosen: dict[int, torch.Tensor] = {}
        self._sequences: dict[Request, _Sequence] = {}
        self._num_sequences = 0

    def begin(self, scheduled: Sequence[Scheduled]) -> None:
        """A pass over these, in the order of their rows, is about to be computed."""
        self._chosen.clear()
        self._scheduled = tuple((item.request, item.request.num_computed, item.num_tokens) for item in scheduled)

    def around(self, dispatcher: ExpertDispatcher) -> Callable[..., torch.Tensor]:
        """The dispatcher's `dispatch`, noting what passes through it."""

        def dispatch(
            layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
        ) -> torch.Tensor:
            order = top_k_weights.argsort(dim=1, descending=True, stable=True)
            self._chosen[layer] = top_k_index.gather(1, order)
            return dispatcher.dispatch(layer, hidden, top_k_index, top_k_weights)

        return dispatch

    def commit(self) -> None:
        """The pass is kept: give its new tokens on."""
        scheduled, self._scheduled = self._scheduled, ()
        rows = sum(num_tokens for _, _, num_tokens in scheduled)
        if not rows or len(self._chosen) != self._num_layers or any(len(one) != rows for one in self._chosen.values()):
            return
        kept = self._new_rows(scheduled)
        if not kept:
            return
        layers = [self._chosen[layer] for layer in range(self._num_layers)]
        experts = torch.stack(layers, dim=1).cpu().numpy().astype(np.uint16)
        taken = np.concatenate([experts[row : row + length] for _, row, length, _ in kept])
        if not self._emit(self._routed(kept, taken)):
            return
        for request, _, length, start in kept:
            self._sequences[request].recorded = start + length
        self.remaining -= len(taken)

    def _new_rows(self, scheduled: Sequence[tuple[Request, int, int]]) -> list[tuple[Request, int, int, int]]:
        """(request, first row, rows, position of the first) of what was not recorded yet, as far as it is wanted."""
        kept = []
        row, room = 0, self.remaining
        for request, start, num_tokens in scheduled:
            known = self._sequences.get(request)
            skipped = min(max(known.recorded - start, 0), num_tokens) if known is not None else 0
            length = min(num_tokens - skipped, room)
            if length > 0:
                kept.append((request, row + skipped, length, start + skipped))
                room -= length
            row += num_tokens
        return kept

    def _routed(self, kept: Sequence[tuple[Request, int, int, int]], experts: Chosen) -> RoutedTokens:
        numbers = tuple(self._sequence_of(request, start).number for request, _, _, start in kept)
        return RoutedTokens(numbers, tuple(length for _, _, length, _ in kept), experts)

    def _sequence_of(self, request: Request, start: int) -> _Sequence:
        """The request's sequence, a new one where its tokens do not follow on."""
        known = self._sequences.get(request)
        if known is None or known.recorded != start:
            known = self._sequences[request] = _Sequence(self._num_sequences, start)
            self._num_sequences += 1
        return known
