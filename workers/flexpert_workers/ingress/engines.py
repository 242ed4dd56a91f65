"""Asks the pool controller which engines there are, and keeps the last answer while the controller is away.

`server.py` runs it for the life of the process; each answer goes to the fleet.
"""

import asyncio
import logging
from collections.abc import Callable

import grpc
import grpc.aio

from flexpert_proto import pool_pb2, pool_pb2_grpc
from flexpert_proto.channels import pool_channel_aio
from flexpert_proto.credentials import CredentialsError
from flexpert_workers.ingress.member import EngineFacts

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
REDIAL_S = 30.0
"""How long one stream is listened to: a Service may lead to another controller by then, and old connections stay."""

_CHANNEL_OPTIONS = (("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000))


async def watch_engines(address: str, tell: Callable[[pool_pb2.EngineList], None]) -> None:
    """Give each list of engines to `tell`, for ever; dial again and again, at the address of the moment."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            async with (
                asyncio.timeout(REDIAL_S),
                pool_channel_aio(address, _CHANNEL_OPTIONS) as channel,
            ):
                async for engines in pool_pb2_grpc.PoolMembershipStub(channel).WatchEngines(
                    pool_pb2.WatchEnginesRequest()
                ):
                    pause_s = FIRST_PAUSE_S
                    tell(engines)
        except TimeoutError:
            continue
        except grpc.aio.AioRpcError as error:
            log.info("pool controller at %s: %s %s", address, error.code().name, error.details())
        except CredentialsError as error:
            log.warning("pool controller at %s: %s", address, error)
        await asyncio.sleep(pause_s)
        pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


def engine_facts(engines: pool_pb2.EngineList) -> list[EngineFacts]:
    """The engines of a list that can be dialled: those that start too, so that they are connected when they are ready.

    One that the controller has given up is left out; the fleet uses it only while it has no other.
    """
    token_bytes = engines.info.kv_bytes_per_token
    return [
        EngineFacts(
            id=engine.id,
            endpoint=engine.endpoint,
            ready=engine.state == pool_pb2.Engine.READY,
            load=engine.running + engine.waiting,
            cache_tokens=engine.kv_bytes // token_bytes if token_bytes and engine.kv_bytes else None,
        )
        for engine in engines.engines
        if engine.endpoint and engine.state != pool_pb2.Engine.LOST
    ]
