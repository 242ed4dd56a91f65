"""Tells the pool controller what this ingress measures, every second. `server.py` runs it for the life of the process.

The operator's autoscaling and wake-up rest on it: what waits here no engine has heard of.
"""

import asyncio
import logging
from collections.abc import Callable

import grpc
import grpc.aio

from flexpert_proto import pool_pb2, pool_pb2_grpc
from flexpert_proto.channels import pool_channel_aio
from flexpert_proto.credentials import CredentialsError
from flexpert_proto.measuring import Figures, figures_message

log = logging.getLogger(__name__)

REPORT_S = 1.0
PAUSE_S = 5.0
ANSWER_S = 5.0
REDIAL_S = 30.0
"""How long one connection is used: a Service may lead to another controller by then."""


async def report_figures(address: str, ingress: str, pool: Callable[[], str], read: Callable[[], Figures]) -> None:
    """Report for ever, at the address of the moment; a controller that cannot take it is asked again later.

    Args:
        address: Of the pool controller, as `names.resolve` takes it.
        ingress: Id of this ingress.
        pool: uid of the pool, empty while it is not known.
        read: The figures now.
    """

    async def report(stub: "pool_pb2_grpc.PoolMembershipAsyncStub") -> None:
        while True:
            told = pool_pb2.IngressReport(pool=pool(), ingress=ingress, figures=figures_message(read()))
            await stub.ReportIngress(told, timeout=ANSWER_S)
            await asyncio.sleep(REPORT_S)

    known = ""
    while True:
        problem = ""
        try:
            async with asyncio.timeout(REDIAL_S), pool_channel_aio(address) as channel:
                await report(pool_pb2_grpc.PoolMembershipStub(channel))
        except TimeoutError:
            known = ""
        except grpc.aio.AioRpcError as error:
            problem = f"{error.code().name} {error.details()}"
        except CredentialsError as error:
            problem = str(error)
        if problem and problem != known:
            log.info("the pool controller at %s takes no figures: %s", address, problem)
        known = problem
        await asyncio.sleep(PAUSE_S if problem else 0.0)
