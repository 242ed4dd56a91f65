"""An expert worker or a page owner as a process of its own, on a GPU that is played on the host."""

import sys

from fake_cuda import FakeCuda, open_fake

from flexpert_workers.expert import __main__ as expert
from flexpert_workers.memory.owner import __main__ as owner


def main():
    opener = open_fake(FakeCuda())
    program = {"expert": expert.main, "owner": owner.main}[sys.argv.pop(1)]
    return program(opener)


if __name__ == "__main__":
    sys.exit(main())
