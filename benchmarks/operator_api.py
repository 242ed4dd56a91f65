"""The embedded Kubernetes API as a process that counts requests; `bench_operator` starts it.

    python benchmarks/operator_api.py TOKEN READY_FILE

Its counts, by user agent and kind of request, are at /livez/counts.
"""

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import web

from flexpert_operator.local.kubeapi import tls
from flexpert_operator.local.kubeapi.api import Api
from flexpert_operator.local.kubeapi.authorization import ADMINISTRATOR
from flexpert_operator.local.kubeapi.server import Handler, application

HOST = "127.0.0.1"
HISTORY = 100_000
"""Events that are kept: the benchmark's bursts are no reason to list anew."""


def counting(counts: Counter[str]) -> Any:
    """A middleware that counts."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/livez/counts":
            return web.json_response(dict(counts))
        agent = request.headers.get("User-Agent", "").split("/")[0]
        lease = "leases" in request.path
        kind = "watch" if "watch" in request.query else "lease" if lease else request.method
        counts[f"{agent} {kind}"] += 1
        return await handler(request)

    return count


async def serve(token: str, ready: Path) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    api = Api(state_file=None, history=HISTORY)
    app = application(api, {token: ADMINISTRATOR}, bookmark_interval_s=30.0)
    app.middlewares.insert(0, counting(Counter()))
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0, ssl_context=tls.create(HOST).context()).start()
    background = asyncio.create_task(api.background())
    temporary = ready.with_suffix(".new")
    temporary.write_text(f"https://{HOST}:{runner.addresses[0][1]}")
    temporary.rename(ready)
    await stop.wait()
    background.cancel()
    await runner.cleanup()
    api.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
    print(json.dumps({"ended": True}))
