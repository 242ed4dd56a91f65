"""Routing traces: which experts a model's router chose, token by token.

`flexpert plan --trace` and the benchmark place by them, `flexpert trace record` writes them, and the operator's status
shows how consistent and how stable routing is. A trace is an `.npz` file of `experts` [tokens, layers, k], the highest
score first, `sequence_lengths` [sequences], and, where the writer knew it, `num_experts`.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexpert_placement.types import Traffic

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_EXPERTS = 4096
"""Experts a layer that a trace may have; more is a damaged file."""


class InvalidTrace(ValueError):
    """A file or array is not a routing trace; the message says what is wrong with it and what it should hold."""


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """The routed experts of a stretch of tokens.

    Attributes:
        experts: [tokens, layers, k] experts that each token chose in each MoE layer, distinct within a layer.
        sequence_lengths: [sequences] tokens of each sequence, in order; they add up to `tokens`.
        num_experts: Routed experts a layer.
    """

    experts: Ints
    sequence_lengths: Ints
    num_experts: int

    @property
    def num_tokens(self) -> int:
        """Tokens, all sequences together."""
        return int(self.experts.shape[0])

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self.experts.shape[1])

    @property
    def top_k(self) -> int:
        """Experts a token chooses in a layer."""
        return int(self.experts.shape[2])

    def sequences(self) -> list[slice]:
        """The tokens of each sequence."""
        ends = np.cumsum(self.sequence_lengths).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def loads(self) -> Floats:
        """[layers, experts] tokens that chose each expert."""
        layers = np.arange(self.num_layers)[None, :, None]
        flat = (self.experts + layers * self.num_experts).ravel()
        counts = np.bincount(flat, minlength=self.num_layers * self.num_experts)
        return counts.reshape(self.num_layers, self.num_experts).astype(np.float64)

    def chosen(self, layer: int) -> NDArray[np.float32]:
        """[tokens, experts] 1 where a token chose the expert in this layer."""
        mask = np.zeros((self.num_tokens, self.num_experts), dtype=np.float32)
        np.put_along_axis(mask, self.experts[:, layer], 1.0, axis=1)
        return mask

    def coactivation(self) -> Floats:
        """[layers, experts, experts] tokens that chose both experts; the diagonal is the loads."""
        masks = (self.chosen(layer) for layer in range(self.num_layers))
        return np.stack([(mask.T @ mask).astype(np.float64) for mask in masks])

    def transitions(self) -> Floats:
        """[layers - 1, experts, experts] tokens from an expert to one of the next layer, each pair counting 1 / k²."""
        shape = (max(self.num_layers - 1, 0), self.num_experts, self.num_experts)
        steps = np.zeros(shape)
        before = self.chosen(0)
        for layer in range(shape[0]):
            after = self.chosen(layer + 1)
            steps[layer] = (before.T @ after) / self.top_k**2
            before = after
        return steps

    def deviation(self, intervals: int = 16) -> Floats:
        """[layers, experts] standard deviation of the loads between equal stretches, scaled to the whole trace."""
        stretches = np.array_split(np.arange(self.num_tokens), min(intervals, self.num_tokens))
        parts = [self._rows(rows).loads() for rows in stretches]
        return np.asarray(np.std(np.stack(parts), axis=0) * len(parts))

    def sample(self, tokens: int) -> Ints:
        """[at most `tokens`, layers, k] tokens spread evenly over the trace."""
        if tokens >= self.num_tokens:
            return self.experts
        return self.experts[np.linspace(0, self.num_tokens - 1, tokens).astype(np.int64)]

    def traffic(self, sample_tokens: int = 8192) -> Traffic:
        """What a placement problem is told of the tokens; its `loads` are `self.loads()`."""
        return Traffic(
            deviation=self.deviation(),
            coactivation=self.coactivation(),
            transitions=self.transitions(),
            sample=self.sample(sample_tokens),
        )

    def halves(self, block: int = 1) -> "tuple[RoutingTrace, RoutingTrace]":
        """Tokens to place with and tokens to judge by: blocks of consecutive tokens in turn.

        Args:
            block: Tokens of a block. With 1 both halves have the same mix of texts; the longer the blocks, the
                more the texts of the halves differ.
        """
        turn = np.arange(self.num_tokens) // max(block, 1) % 2
        return self._rows(np.flatnonzero(turn == 0)), self._rows(np.flatnonzero(turn == 1))

    def _rows(self, rows: Ints) -> "RoutingTrace":
        """These tokens only, which still belong to their sequences."""
        lengths = np.bincount(self._sequence_of()[rows], minlength=len(self.sequence_lengths))
        return RoutingTrace(self.experts[rows], lengths[lengths > 0], self.num_experts)

    def _sequence_of(self) -> Ints:
        return np.repeat(np.arange(len(self.sequence_lengths)), self.sequence_lengths)


def trace_of(experts: NDArray[np.generic], sequence_lengths: NDArray[np.generic], num_experts: int) -> RoutingTrace:
    """A trace from arrays, checked.

    Raises:
        InvalidTrace: The arrays contradict each other or the number of experts.
    """
    experts, lengths = np.asarray(experts), np.asarray(sequence_lengths)
    _check_shapes(experts, lengths)
    trace = RoutingTrace(experts.astype(np.int64), lengths.astype(np.int64), num_experts)
    _check_values(trace.experts, trace.sequence_lengths, num_experts)
    return trace


def load_trace(path: Path | str, num_experts: int | None = None) -> RoutingTrace:
    """Read a trace.

    Args:
        path: An `.npz` file.
        num_experts: Routed experts a layer; without it what the file says, else one more than the highest that occurs.

    Raises:
        InvalidTrace: The file is missing, damaged or not a trace.
    """
    arrays = _read(Path(path))
    missing = {"experts", "sequence_lengths"} - set(arrays)
    if missing:
        raise InvalidTrace(f"{path} lacks {', '.join(sorted(missing))}: a trace holds `experts` and `sequence_lengths`")
    experts = arrays["experts"]
    known = num_experts or (int(arrays["num_experts"]) if "num_experts" in arrays else None)
    try:
        if known is None:
            _check_shapes(experts, arrays["sequence_lengths"])
            known = int(np.asarray(experts, dtype=np.int64).max()) + 1
        return trace_of(experts, arrays["sequence_lengths"], known)
    except InvalidTrace as error:
        raise InvalidTrace(f"{path}: {error}") from None


def save_trace(path: Path | str, trace: RoutingTrace) -> None:
    """Write a trace, with the smallest type that holds its experts."""
    kind = np.uint8 if trace.num_experts <= 256 else np.uint16
    with Path(path).open("wb") as file:
        np.savez_compressed(
            file,
            experts=trace.experts.astype(kind),
            sequence_lengths=trace.sequence_lengths.astype(np.int32),
            num_experts=np.int32(trace.num_experts),
        )


def _read(path: Path) -> Mapping[str, NDArray[np.generic]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise InvalidTrace(f"cannot read the trace {path}: {error.strerror or error}") from error
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidTrace(f"{path} is not a routing trace (an .npz file of plain arrays): {error}") from error


def _check_shapes(experts: NDArray[np.generic], lengths: NDArray[np.generic]) -> None:
    if experts.ndim != 3 or not np.issubdtype(experts.dtype, np.integer) or 0 in experts.shape:
        raise InvalidTrace(
            f"`experts` is {experts.dtype} {list(experts.shape)}: it must be whole numbers [tokens, layers, k]"
        )
    if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer):
        raise InvalidTrace(
            f"`sequence_lengths` is {lengths.dtype} {list(lengths.shape)}: it must be whole numbers [sequences]"
        )


def _check_values(experts: Ints, lengths: Ints, num_experts: int) -> None:
    tokens, total = experts.shape[0], int(lengths.sum())
    if total != tokens or (lengths < 0).any():
        raise InvalidTrace(f"`sequence_lengths` add up to {total} and there are {tokens} tokens")
    if not 0 < num_experts <= MOST_EXPERTS:
        raise InvalidTrace(f"{num_experts} experts a layer: it must be 1 to {MOST_EXPERTS}")
    low, high = int(experts.min()), int(experts.max())
    if low < 0 or high >= num_experts:
        raise InvalidTrace(
            f"experts {low} to {high} occur, a layer has {num_experts}: give the model's number of experts"
        )
    ordered = np.sort(experts, axis=2)
    twice = (ordered[..., 1:] == ordered[..., :-1]).any(axis=2)
    if twice.any():
        token, layer = (int(number) for number in np.argwhere(twice)[0])
        raise InvalidTrace(f"token {token} chose one expert twice in layer {layer}: they must be distinct")
