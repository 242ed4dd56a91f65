"""How messages travel on the CPU: stream sockets for dispatches, ZeroMQ for control, and arrays as frames.

The expert worker, the dispatch client and the control client use it; no other module of theirs touches a socket.
"""

from typing import TYPE_CHECKING, Any

from flexpert_workers.transport.endpoints import bind, connect, is_loopback
from flexpert_workers.transport.monitor import ConnectionMonitor, PeerEvent
from flexpert_workers.transport.sockets import is_readable

if TYPE_CHECKING:
    from flexpert_workers.transport.frames import as_frame, from_frame

__all__ = ["ConnectionMonitor", "PeerEvent", "as_frame", "bind", "connect", "from_frame", "is_loopback", "is_readable"]


def __getattr__(name: str) -> Any:
    """Import what handles tensors when it is first used: it brings torch, which a pool controller does without."""
    if name not in ("as_frame", "from_frame"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flexpert_workers.transport import frames

    return getattr(frames, name)
