"""Asks a checkpoint's facts from a process of its own, so that the controller never imports a model library."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable

import msgspec

from flexpert_workers import errors
from flexpert_workers.pool.state import ModelFacts

Inspector = Callable[[str, str, str], Awaitable[ModelFacts]]
"""(source, revision, dtype) → facts; raises `errors.CheckpointError`."""

_ERRORS: dict[str, type[errors.CheckpointError]] = {
    "CheckpointNotFound": errors.CheckpointNotFound,
    "CorruptCheckpoint": errors.CorruptCheckpoint,
    "UnsupportedArchitecture": errors.UnsupportedArchitecture,
    "AccessDenied": errors.AccessDenied,
    "SourceUnreachable": errors.SourceUnreachable,
    "CacheUnusable": errors.CacheUnusable,
}


_RENAMED = ("error", "message", "source", "revision")


class _Answer(msgspec.Struct, frozen=True):
    """What the inspection prints: the fields of `ModelInfo`, or an error and its message."""

    architecture: str = ""
    digest: str = ""
    layers: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_bytes: int = 0
    dense_bytes: int = 0
    kv_bytes_per_token: int = 0
    context_length: int = 0
    source: str = ""
    revision: str = ""
    fetched_bytes: int = 0
    error: str = ""
    message: str = ""


async def inspect_in_subprocess(source: str, revision: str, dtype: str) -> ModelFacts:
    """Run `python -m flexpert_workers.checkpoint.inspect` and read its answer.

    Raises:
        errors.CheckpointError: The checkpoint cannot be used; the message says what to change.
    """
    command = [sys.executable, "-m", "flexpert_workers.checkpoint.inspect", source, dtype, revision]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    return read_answer(done.stdout, done.stderr, source, revision, dtype)


def read_answer(stdout: str, stderr: str, source: str, revision: str, dtype: str) -> ModelFacts:
    """Facts from what the inspection printed; raises what it reports."""
    try:
        answer = msgspec.json.decode(stdout.strip().splitlines()[-1], type=_Answer)
    except (IndexError, msgspec.DecodeError) as unreadable:
        tail = stderr.strip().splitlines()[-1:] or ["no message"]
        raise errors.CheckpointError(f"the inspection of {source} failed: {tail[0]}") from unreadable
    if answer.error:
        raise _ERRORS.get(answer.error, errors.CheckpointError)(answer.message)
    facts = {name: value for name, value in msgspec.structs.asdict(answer).items() if name not in _RENAMED}
    return ModelFacts(source, revision, dtype, **facts, opened=answer.source, resolved=answer.revision)
