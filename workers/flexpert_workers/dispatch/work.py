"""One dispatch while it is under way: its pairs, the parts sent to workers, and the sums that came back.

Plain values and arithmetic; the dispatch client moves them over sockets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from flexpert_workers.transport import as_frame

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LayerInput:
    """What the router of a layer chose.

    Attributes:
        hidden: [rows, hidden], contiguous, on the CPU.
        experts: [rows * k] expert index of each pair; the pairs of a row stand together.
        weights: [rows * k] float32.
    """

    layer: int
    hidden: torch.Tensor
    experts: IntArray
    weights: npt.NDArray[np.float32]
    experts_per_row: int

    @classmethod
    def of(
        cls, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> "LayerInput":
        """From the tensors that the experts function gets, wherever they are."""
        return cls(
            layer,
            _on_cpu(hidden),
            top_k_index.cpu().numpy().reshape(-1).astype(np.int64, copy=False),
            top_k_weights.detach().to("cpu", torch.float32).numpy().reshape(-1),
            top_k_index.shape[-1],
        )

    def rows_of(self, pairs: IntArray) -> IntArray:
        """[pairs] the row of each."""
        return pairs // self.experts_per_row

    def experts_of(self, pairs: IntArray) -> tuple[tuple[int, int], ...]:
        """(layer, index) of the experts of these pairs."""
        return tuple((self.layer, int(index)) for index in np.unique(self.experts[pairs]))


@dataclass(frozen=True, eq=False)
class Part:
    """The pairs of a dispatch that one worker is asked to compute.

    Attributes:
        attempt: Number of the try.
        position: Of the worker in its table: sums are added in this order.
        pairs: Positions in `LayerInput.experts`.
        rows: The distinct rows of these pairs, ascending; None when these are all rows.
    """

    attempt: int
    position: int
    incarnation: str
    pairs: IntArray
    rows: IntArray | None
    num_rows: int
    frames: tuple[memoryview, memoryview, memoryview]
    hang_at: float

    @classmethod
    def of(
        cls, layer_input: LayerInput, pairs: IntArray, *, attempt: int, position: int, incarnation: str, hang_at: float
    ) -> "Part":
        """The part that computes `pairs`, ascending, with its frames behind the header."""
        hidden, experts, weights = layer_input.hidden, layer_input.experts, layer_input.weights
        wire_rows = layer_input.rows_of(pairs)
        rows = None
        if len(pairs) < len(experts):
            experts, weights = experts[pairs], weights[pairs]
            is_first = np.ones(len(pairs), dtype=np.bool_)
            np.not_equal(wire_rows[1:], wire_rows[:-1], out=is_first[1:])
            rows = wire_rows[is_first]
            wire_rows = np.cumsum(is_first) - 1
            hidden = hidden.index_select(0, torch.from_numpy(rows))
        wire_pairs = np.empty((len(pairs), 2), dtype=np.int32)
        wire_pairs[:, 0] = wire_rows
        wire_pairs[:, 1] = experts
        frames = (as_frame(hidden), wire_pairs.data.cast("B"), weights.data.cast("B"))
        return cls(attempt, position, incarnation, pairs, rows, hidden.shape[0], frames, hang_at)


@dataclass(eq=False)
class Work:
    """The state of a dispatch.

    Attributes:
        unsent: Pairs that no worker has been asked for.
        parts: Incarnation → the part that worker was asked for and has not answered.
        answers: The parts answered, with their sums [rows, hidden] float32.
        refused_by: Incarnations that failed to compute in this dispatch, with what they said.
    """

    request: int
    layer_input: LayerInput
    deadline: float
    unsent: IntArray
    attempt: int = 0
    parts: dict[str, Part] = field(default_factory=dict)
    answers: list[tuple[Part, torch.Tensor]] = field(default_factory=list)
    refused_by: dict[str, str] = field(default_factory=dict)
    compute_us: int = 0

    @property
    def is_done(self) -> bool:
        """Every pair was answered."""
        return not self.parts and not len(self.unsent)

    def take_back(self, part: Part) -> None:
        """The worker will not answer `part`: its pairs are to be sent again."""
        del self.parts[part.incarnation]
        self.unsent = np.sort(np.concatenate([self.unsent, part.pairs]))

    def unanswered(self) -> tuple[tuple[int, int], ...]:
        """(layer, index) of the experts that were not answered for."""
        outstanding = np.concatenate([self.unsent, *(part.pairs for part in self.parts.values())])
        return self.layer_input.experts_of(outstanding)

    def result(self) -> torch.Tensor:
        """[rows, hidden] the sums, added in worker order in float32, in the type of the hidden rows."""
        hidden = self.layer_input.hidden
        ordered = sorted(self.answers, key=lambda answer: (answer[0].attempt, answer[0].position))
        return add_sums([(part.rows, sums) for part, sums in ordered], hidden.shape).to(hidden.dtype)


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it can be sent as it is."""
    if tensor.is_cpu and tensor.is_contiguous() and not tensor.requires_grad:
        return tensor
    return tensor.detach().cpu().contiguous()


def add_sums(answers: Sequence[tuple[IntArray | None, torch.Tensor]], shape: torch.Size) -> torch.Tensor:
    """Add (rows, sums) in order; rows None means all of them."""
    if len(answers) == 1 and answers[0][0] is None:
        return answers[0][1]
    total = torch.zeros(shape, dtype=torch.float32)
    for rows, sums in answers:
        if rows is None:
            total += sums
        else:
            total.index_add_(0, torch.from_numpy(rows), sums)
    return total
