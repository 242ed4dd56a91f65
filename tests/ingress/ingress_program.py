"""An ingress as a program of its own."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingress_fake_pool import FakePool


@asynccontextmanager
async def ingress_process(pool: FakePool) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, int]]]:
    environment = os.environ | {
        "FLEXPERT_POOL_CONTROL": pool.address,
        "FLEXPERT_POOL": '{"uid": "u", "name": "tiny", "namespace": "default"}',
        "FLEXPERT_GRPC_PORT": "0",
        "FLEXPERT_HTTP_PORT": "0",
        "FLEXPERT_BIND_HOST": "127.0.0.1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flexpert_workers.ingress", env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(await process.stdout.readline())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
