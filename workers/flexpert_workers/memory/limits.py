"""How many files a process may have open: a page is a descriptor, so owners and workers need one an expert."""

import resource

from flexpert_workers.errors import CapacityError

_OTHERS = 512
"""Descriptors for everything else: sockets, libraries, the checkpoint's files."""


def allow_descriptors(num_pages: int) -> None:
    """Raise this process's limit so that it can hold `num_pages` pages.

    Raises:
        CapacityError: The hard limit is lower; the message says what to set.
    """
    needed = num_pages + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise CapacityError(
                f"{num_pages} expert pages need {needed} open files, this process may have {hard}: raise the hard "
                f"limit of RLIMIT_NOFILE (ulimit -Hn) of the container"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
