"""How messages travel on the CPU: ZeroMQ sockets, their endpoints, their disconnects, and arrays as frames.

The expert worker, the dispatch client and the control client use it; nothing else calls ZeroMQ for expert traffic.
"""

from flexpert_workers.transport.endpoints import bind, is_loopback
from flexpert_workers.transport.frames import as_frame, from_frame, is_readable
from flexpert_workers.transport.monitor import ConnectionMonitor, PeerEvent

__all__ = ["ConnectionMonitor", "PeerEvent", "as_frame", "bind", "from_frame", "is_loopback", "is_readable"]
