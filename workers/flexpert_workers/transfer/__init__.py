"""Copies of expert pages between memory domains: point to point, in chunks, verified, resumable, within a rate.

A page owner runs one `PageServer` for the pages that it holds, and one `PageFetcher` to fill pages from other owners.
Nothing here imports torch.
"""

from flexpert_workers.transfer.bucket import TokenBucket
from flexpert_workers.transfer.checksum import page_checksum
from flexpert_workers.transfer.contract import DeviceMemory, FetchLimits, Identity, Received, ServeLimits
from flexpert_workers.transfer.source import PageServer
from flexpert_workers.transfer.target import PageFetcher

__all__ = [
    "DeviceMemory",
    "FetchLimits",
    "Identity",
    "PageFetcher",
    "PageServer",
    "Received",
    "ServeLimits",
    "TokenBucket",
    "page_checksum",
]
