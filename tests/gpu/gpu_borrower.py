"""A process that adopts one page from a descriptor it inherits, maps it, prints its checksum and waits to be killed."""

import json
import sys

from flexpert_workers.memory.backend import page_checksum
from flexpert_workers.memory.cuda import open_cuda


def main():
    descriptor, nbytes = int(sys.argv[1]), int(sys.argv[2])
    backend = open_cuda(computes=True)
    page = backend.adopt(descriptor, nbytes)
    arena = backend.reserve(1, nbytes)
    arena.map(0, page)
    seen = arena.tensor(0)[:nbytes]
    host = memoryview(seen.cpu().numpy())
    print(json.dumps({"checksum": page_checksum(host), "identity": page.identity()}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
