"""The peers of `bench_serving.py`: a bare `grpc.aio` server and a bare FastAPI server, which answer with a constant.

    python serving_bare.py grpc|http     prints the port

Both have the interface of the ingress and answer what it answers to one token; neither checks, tokenises or asks an
engine. FastAPI runs on uvicorn with uvloop and httptools, which is its fastest documented setting.
"""

import asyncio
import socket
import sys
from typing import Annotated, Any

import grpc.aio
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import generation_pb2_grpc


class Generation(generation_pb2_grpc.GenerationServicer):
    """Answers one token."""

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await context.write(
            pb.GenerateResponse(
                request_id="bare",
                text=" the",
                tokens=[pb.Token(id=100)],
                seed=1,
                finish_reason=pb.FINISH_LENGTH,
                usage=pb.Usage(prompt_tokens=8, completion_tokens=1),
            )
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:  # noqa: N802
        return pb.TokenizeResponse(ids=[1])


async def serve_grpc() -> None:
    server = grpc.aio.server()
    generation_pb2_grpc.add_GenerationServicer_to_server(Generation(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


class CompletionRequest(BaseModel):
    """The parameters that the load sends."""

    model: str
    prompt: str
    max_tokens: Annotated[int, Field(ge=1)] = 16
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    seed: int | None = None


def serve_http() -> None:
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete(request: CompletionRequest) -> dict[str, Any]:
        return {
            "id": "cmpl-bare",
            "object": "text_completion",
            "created": 0,
            "model": request.model,
            "system_fingerprint": "",
            "choices": [{"index": 0, "text": " the", "logprobs": None, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9},
        }

    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, loop="uvloop", http="httptools")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    if sys.argv[1] == "grpc":
        asyncio.run(serve_grpc())
    else:
        serve_http()
