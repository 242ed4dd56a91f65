"""One forward pass as arrays: packed rows, where their keys go, and how attention groups them.

Built by the runner from what the scheduler chose; read by the attention function, once a layer. Decode rows come first,
then chunks, each by length, so that requests of nearly equal length share one call and long chunks are last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flexpert_workers.engine.request import Request
from flexpert_workers.engine.scheduler import Scheduled

IntArray = npt.NDArray[np.int64]

LONG_TOKENS = 8192
"""Chunks that end behind this many tokens are attended to tile by tile, not row by row: their keys leave the caches."""
MAX_PADDING = 1.5
"""A decode group is closed when its shortest request would be padded to more than this many times its length …"""
PADDING_SLACK = 128
"""… and by more than this many tokens."""


class PagedRows(NamedTuple):
    """Which tokens rows see.

    Attributes:
        tables: [requests, width] int64 blocks; the padding block behind a request's last one.
        owners: [rows] int64, the request of each row.
        firsts: [rows] int64; `lengths` likewise: the tokens [first, length).
    """

    tables: IntArray
    owners: IntArray
    firsts: IntArray
    lengths: IntArray


@dataclass(frozen=True)
class DecodeGroup:
    """Decode rows `start` … `stop` - 1, padded to the longest.

    Attributes:
        table: [rows, blocks] int64 blocks to gather.
        mask: [rows, 1, 1, tokens] bool, True where a key counts; None where all do.
        num_tokens: Keys to look at, of those gathered.
    """

    start: int
    stop: int
    table: torch.Tensor
    mask: torch.Tensor | None
    num_tokens: int


@dataclass(frozen=True)
class Chunk:
    """Rows `start` … `stop` - 1 prefill one request, whose first `position` tokens are in the cache already.

    Attributes:
        table: [1, blocks] int64.
    """

    start: int
    stop: int
    position: int
    table: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """A pass.

    Attributes:
        scheduled: In the order of their rows.
        input_ids: [1, rows] int64. `positions` likewise.
        slots: [rows] int64, where each row's keys and values go.
        sampled: The requests that get a token, in the order of `logit_rows` [sampled] int64.
        num_decodes: Rows that are alone of their request; they come first.
        gather_tokens: Most tokens of one layer to gather for one group, unless a single request has more.
    """

    scheduled: list[Scheduled]
    input_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    sampled: list[Request]
    logit_rows: torch.Tensor
    num_decodes: int
    block_tokens: int
    gather_tokens: int
    _groups: dict[int | None, list[DecodeGroup]] = field(default_factory=dict)
    _rows: dict[int | None, PagedRows] = field(default_factory=dict)

    def rows(self, window: int | None) -> PagedRows:
        """What all rows but those of long chunks see in layers that see the last `window` tokens (None: all)."""
        if window not in self._rows:
            self._rows[window] = self._visible(window)
        return self._rows[window]

    def decode_groups(self, window: int | None) -> list[DecodeGroup]:
        """Groups of the decode rows for layers that see the last `window` tokens (None: all)."""
        if window not in self._groups:
            self._groups[window] = self._group(window)
        return self._groups[window]

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The prefills."""
        chunks = []
        row = self.num_decodes
        for item in self.scheduled[self.num_decodes :]:
            num_blocks = -(-item.stop // self.block_tokens)
            table = torch.tensor([item.request.blocks[:num_blocks]])
            chunks.append(Chunk(row, row + item.num_tokens, item.request.num_computed, table))
            row += item.num_tokens
        return chunks

    @cached_property
    def long_chunks(self) -> list[Chunk]:
        """The prefills that end behind `LONG_TOKENS`: they come last."""
        return [chunk for chunk in self.chunks if chunk.position + chunk.stop - chunk.start > LONG_TOKENS]

    @property
    def num_short_rows(self) -> int:
        """Rows before those of long chunks."""
        return self.input_ids.shape[1] - sum(chunk.stop - chunk.start for chunk in self.long_chunks)

    def _visible(self, window: int | None) -> PagedRows:
        if window is not None:
            rows = self.rows(None)
            return rows._replace(firsts=np.maximum(rows.lengths - window, 0))
        short = self.scheduled[: len(self.scheduled) - len(self.long_chunks)]
        owners = np.repeat(np.arange(len(short)), [item.num_tokens for item in short])
        lengths = self.positions[0, : len(owners)].numpy() + 1
        num_blocks = [-(-item.stop // self.block_tokens) for item in short]
        tables = np.zeros((len(short), max(num_blocks, default=0)), dtype=np.int64)
        for row, (item, count) in enumerate(zip(short, num_blocks, strict=True)):
            tables[row, :count] = item.request.blocks[:count]
        return PagedRows(tables, owners, np.zeros_like(lengths), lengths)

    def _group(self, window: int | None) -> list[DecodeGroup]:
        rows = self.rows(window)
        spans = (rows.lengths - rows.firsts)[: self.num_decodes].tolist()
        cuts = _cuts(spans, self.gather_tokens)
        return [_decode_group(rows, start, stop, self.block_tokens) for start, stop in cuts]


def build(scheduled: Sequence[Scheduled], block_tokens: int, gather_tokens: int) -> Batch:
    """The arrays of a pass over `scheduled`."""
    ordered = sorted(scheduled, key=lambda item: (item.num_tokens > 1, item.stop))
    counts = np.array([item.num_tokens for item in ordered])
    starts = np.array([item.request.num_computed for item in ordered])
    ends = np.cumsum(counts)
    positions = np.arange(ends[-1]) + np.repeat(starts - (ends - counts), counts)
    tokens = np.concatenate([r.tokens[r.num_computed : r.num_computed + n] for r, n in ordered])
    rows = [end - 1 for end, item in zip(ends.tolist(), ordered, strict=True) if item.samples]
    return Batch(
        scheduled=ordered,
        input_ids=torch.from_numpy(tokens)[None],
        positions=torch.from_numpy(positions)[None],
        slots=torch.from_numpy(_slots(ordered, positions, counts, block_tokens)),
        sampled=[item.request for item in ordered if item.samples],
        logit_rows=torch.tensor(rows, dtype=torch.int64),
        num_decodes=sum(item.num_tokens == 1 for item in ordered),
        block_tokens=block_tokens,
        gather_tokens=gather_tokens,
    )


def _slots(ordered: Sequence[Scheduled], positions: IntArray, counts: IntArray, block_tokens: int) -> IntArray:
    """[rows] where each row goes."""
    bases = np.cumsum([0, *(len(item.request.blocks) for item in ordered[:-1])])
    tables = np.concatenate([item.request.blocks for item in ordered])
    blocks = tables[np.repeat(bases, counts) + positions // block_tokens]
    slots: IntArray = blocks * block_tokens + positions % block_tokens
    return slots


def _cuts(spans: list[int], gather_tokens: int) -> list[tuple[int, int]]:
    """Ranges of ascending spans in which the longest pads the shortest by not too much, and which fit the workspace."""
    cuts = [0]
    for index, span in enumerate(spans):
        start = cuts[-1]
        padded = span > MAX_PADDING * spans[start] and span > spans[start] + PADDING_SLACK
        too_large = index > start and span * (index - start + 1) > gather_tokens
        if padded or too_large:
            cuts.append(index)
    return [(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(spans)], strict=True) if start < stop]


def _decode_group(rows: PagedRows, start: int, stop: int, block_tokens: int) -> DecodeGroup:
    """Gather from the block that holds the first visible token; hide what is before it and behind the last one."""
    firsts, lengths = rows.firsts[start:stop], rows.lengths[start:stop]
    first_blocks = firsts // block_tokens
    skipped = firsts - first_blocks * block_tokens
    visible = lengths - first_blocks * block_tokens
    num_blocks = int(-(-visible.max() // block_tokens))
    columns = first_blocks[:, None] + np.arange(num_blocks)
    # Columns behind the table, of requests shorter than the longest, repeat its last one: the mask hides them.
    table = np.take_along_axis(rows.tables[start:stop], np.minimum(columns, rows.tables.shape[1] - 1), axis=1)
    num_tokens = int(visible.max())
    tokens = np.arange(num_tokens)
    shown = (tokens >= skipped[:, None]) & (tokens < visible[:, None])
    mask = None if shown.all() else torch.from_numpy(shown)[:, None, None, :]
    return DecodeGroup(start, stop, torch.from_numpy(table), mask, num_tokens)
