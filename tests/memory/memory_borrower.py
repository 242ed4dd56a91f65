"""A process that borrows every page of a checkpoint, maps it, prints what it sees and waits: for tests that kill it."""

import json
import sys
import zlib

import msgspec

from flexpert_workers.memory.client import OwnerClient
from flexpert_workers.memory.host import HostBackend
from flexpert_workers.memory.loans import Want
from flexpert_workers.messages.owner import Hello


def main():
    path, hello, keys = sys.argv[1:]
    backend = HostBackend()
    hello = msgspec.json.decode(hello, type=Hello)
    client = OwnerClient(path, hello, backend)
    client.connect(30)
    arena = backend.reserve(len(json.loads(keys)), hello.page_bytes)
    seen = []
    for slot, loan in enumerate(client.acquire([Want(tuple(key)) for key in json.loads(keys)])):
        arena.map(slot, loan.page)
        arena.populate(slot)
        seen.append((*loan.key, zlib.crc32(loan.page.view()), loan.origin))
    print(json.dumps(seen), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
