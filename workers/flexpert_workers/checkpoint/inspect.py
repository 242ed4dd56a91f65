"""`python -m flexpert_workers.checkpoint.inspect SOURCE DTYPE [REVISION]`: a checkpoint's facts as JSON (ModelInfo of
pool.proto). Of a remote one only configuration, headers and samples are fetched.

The pool controller runs it as a process of its own, so that it needs neither torch nor transformers in its memory and
a broken checkpoint cannot take it along. Exit status 3 comes with `{"error": exception class, "message": …}`.
"""

import json
import sys

from flexpert_proto import pool_pb2
from flexpert_workers.checkpoint.checkpoint import Checkpoint, open_folder
from flexpert_workers.errors import CheckpointError
from flexpert_workers.sources import Cache
from flexpert_workers.sources.bringing import Bringer, Located

EXIT_REFUSED = 3


def model_info(checkpoint: Checkpoint, located: Located) -> pool_pb2.ModelInfo:
    """What placement and validation need to know."""
    return pool_pb2.ModelInfo(
        architecture=checkpoint.architecture,
        digest=checkpoint.digest,
        layers=checkpoint.num_layers,
        experts=checkpoint.num_experts,
        experts_per_token=checkpoint.experts_per_token,
        expert_bytes=checkpoint.layout.page_bytes,
        dense_bytes=checkpoint.dense_bytes,
        kv_bytes_per_token=checkpoint.kv_bytes_per_token,
        context_length=checkpoint.context_length,
        source=located.source,
        revision=located.revision,
        fetched_bytes=located.num_bytes,
    )


def main(arguments: list[str]) -> int:
    """Print the facts, or why there are none; returns the exit status."""
    source, dtype, *revision = arguments
    try:
        located = Bringer(Cache.of()).located(source, next(iter(revision), ""))
        info = model_info(open_folder(located.folder, dtype), located)
    except CheckpointError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return EXIT_REFUSED
    print(json.dumps({field.name: getattr(info, field.name) for field in info.DESCRIPTOR.fields}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
