"""`python -m flexpert_workers.sources.resolve SOURCE REVISION`: what a remote source's revision names now, as JSON.

A pool controller runs it now and then (`pool.watching`). Exit status 3 comes with `{"message": …}`.
"""

import json
import sys

from flexpert_workers.errors import CheckpointError, CheckpointNotFound
from flexpert_workers.sources.bringing import Bringer
from flexpert_workers.sources.cache import Cache
from flexpert_workers.sources.location import parse_remote

EXIT_REFUSED = 3


def main(arguments: list[str]) -> int:
    """Print the revision, or why there is none; returns the exit status."""
    source, revision = arguments
    try:
        remote = parse_remote(source, revision)
        if remote is None:
            raise CheckpointNotFound(f"{source!r} is no remote source")
        print(json.dumps({"revision": Bringer(Cache.of()).resolve(remote).revision}))
    except CheckpointError as error:
        print(json.dumps({"message": str(error)}))
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
