"""The moves of a reconfiguration, and how far each is. Pure; used by `snapshot`.

Within a wave workers say how many of their experts have come, not which: a move has come when all of its worker's have.
"""

from collections import Counter

from flexpert_workers.pool.state import Move, Phase
from flexpert_workers.pool.waves import Waves

WAITING, COMING, COME, SERVING, UNDONE = "wctsu"
"""A later wave's; being prepared; prepared, but in no table yet; in the table; rolled back or never begun."""


def moves_of(waves: Waves, num_experts: int) -> dict[str, object]:
    """Every move in the order of the waves: `[expert, target, first source]`, workers by position; -1: the file."""
    moves = [move for wave in waves.waves for move in wave.moves]
    names = sorted(
        {move.target for move in moves} | {source for move in moves for source in move.sources[:1] if source}
    )
    position = {name: number for number, name in enumerate(names)}
    return {
        "operation": waves.request.operation,
        "workers": names,
        "waves": len(waves.waves),
        "moves": [
            [_packed(move, num_experts), position[move.target], position.get(_first(move), -1)] for move in moves
        ],
    }


def progress_of(waves: Waves) -> dict[str, object]:
    """How far the moves are: a letter each, in their order, and what the targets of the present wave have said."""
    wave = waves.current
    coming = Counter(move.target for move in wave.request.moves)
    return {
        "operation": waves.request.operation,
        "wave": waves.operation.wave,
        "stages": "".join(
            _stage(waves, number, move) for number, one in enumerate(waves.waves, start=1) for move in one.moves
        ),
        "targets": {
            target: {
                "coming": count,
                "come": said.copied_experts if said is not None else 0,
                "bytes": said.copied_bytes if said is not None else 0,
            }
            for target, count in sorted(coming.items())
            for said in (wave.prepared.get(target),)
        },
    }


def _stage(waves: Waves, number: int, move: Move) -> str:
    """How far a move of wave `number` is."""
    wave, operation = waves.current, waves.operation
    if number != operation.wave:
        later = UNDONE if operation.phase.finished else WAITING
        return SERVING if number < operation.wave else later
    if wave.committed:
        return SERVING
    if wave.operation.phase.finished:
        return UNDONE
    if wave.operation.phase is Phase.PENDING:
        return WAITING
    said = wave.prepared.get(move.target)
    return COME if said is not None and said.done else COMING


def _packed(move: Move, num_experts: int) -> int:
    layer, index = move.expert
    return layer * num_experts + index


def _first(move: Move) -> str:
    return move.sources[0] if move.sources else ""
