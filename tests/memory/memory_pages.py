"""What the tests of memory share: pages of known bytes, and what a process has open and mapped."""

import os
import random
from pathlib import Path


def page_of(backend, seed, nbytes=300_000):
    """A sealed page of random bytes, and the bytes."""
    data = random.Random(seed).randbytes(nbytes)
    page = backend.create(nbytes)
    page.fill(lambda target: target.__setitem__(slice(None), data))
    return page.seal(), data


def num_descriptors(pid="self"):
    return len(os.listdir(f"/proc/{pid}/fd"))


def num_page_mappings(pid="self"):
    """Mappings of pages in a process."""
    return sum("flexpert-page" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
