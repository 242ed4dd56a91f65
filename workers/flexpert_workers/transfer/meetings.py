"""The channels of a page server, one a target. The server's thread alone uses it."""

import time
from collections.abc import Callable

from flexpert_workers.transfer.channel import Channel, ChannelTransport
from flexpert_workers.transfer.contract import ServeLimits


class Meetings:
    """Channels to targets' devices; those that hang, or are not used, are aborted by `tidy`."""

    def __init__(
        self, transport: ChannelTransport | None, limits: ServeLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport = transport
        self._limits = limits
        self._clock = clock
        self._channels: dict[bytes, Channel] = {}

    def __len__(self) -> int:
        return len(self._channels)

    def meet(self, target: bytes, meeting: bytes) -> bool:
        """Go to a meeting with a target, in the background; False when this server makes no channels."""
        transport = self._transport
        if transport is None:
            return False
        self.end(target)
        longest_s, clock = self._limits.channel_s, self._clock
        self._channels[target] = Channel(lambda: transport.communicator(meeting, rank=0), longest_s, clock)
        return True

    def of(self, target: bytes) -> Channel | None:
        """The channel to a target, unless it is broken."""
        channel = self._channels.get(target)
        return None if channel is None or channel.broken else channel

    def end(self, target: bytes) -> None:
        """Abort the channel to a target, if there is one."""
        channel = self._channels.pop(target, None)
        if channel is not None:
            channel.abort()

    def tidy(self) -> None:
        """End the channels that are broken, that wait for a target which hangs, or that have long been idle."""
        idle_since = self._clock() - self._limits.channel_idle_s
        for target, channel in list(self._channels.items()):
            if channel.broken or channel.overdue() or channel.used_at < idle_since:
                self.end(target)

    def clear(self) -> None:
        """End all channels."""
        for target in list(self._channels):
            self.end(target)
