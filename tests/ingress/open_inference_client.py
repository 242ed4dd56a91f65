"""Asks an ingress by Triton's own client, in a process of its own: both sides register package `inference`.

    python open_inference_client.py HOST:PORT

prints what every call gave, as one JSON object.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio


def texts_input(texts: list[bytes], shape: list[int], name: str = "text_input") -> triton.InferInput:
    tensor = triton.InferInput(name, shape, "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=np.object_).reshape(shape))
    return tensor


def attempt(call: Callable[[], Any]) -> str:
    try:
        call()
    except triton.InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    return "no error"


def infer(client: triton.InferenceServerClient) -> dict[str, Any]:
    result = client.infer(
        "tiny",
        [texts_input([b"import os", b"def"], [2])],
        request_id="mine",
        parameters={"max_tokens": 6, "temperature": "0.5", "seed": 3, "ignore_eos": True},
    )
    outputs = {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
    return {
        "id": result.get_response().id,
        "text_output": [text.decode() for text in outputs["text_output"].tolist()],
        "finish_reason": [reason.decode() for reason in outputs["finish_reason"].tolist()],
        "completion_tokens": outputs["completion_tokens"].tolist(),
    }


async def infer_async(address: str) -> str:
    async with triton_aio.InferenceServerClient(address) as client:
        outputs = [triton_aio.InferRequestedOutput("text_output")]
        result = await client.infer(
            "tiny", [texts_input([b"import os"], [1, 1])], outputs=outputs, parameters={"max_tokens": 2, "seed": 1}
        )
        assert result.get_output("finish_reason") is None
        assert result.as_numpy("text_output").shape == (1, 1)
        return str(result.as_numpy("text_output")[0][0].decode())


def errors(client: triton.InferenceServerClient) -> dict[str, str]:
    one = [texts_input([b"a"], [1])]
    numbers = triton.InferInput("text_input", [1], "INT32")
    numbers.set_data_from_numpy(np.zeros(1, dtype=np.int32))
    outputs = [triton.InferRequestedOutput("image")]
    return {
        "model": attempt(lambda: client.infer("another", one)),
        "version": attempt(lambda: client.infer("tiny", one, model_version="7")),
        "input": attempt(lambda: client.infer("tiny", [texts_input([b"a"], [1], "prompt")])),
        "datatype": attempt(lambda: client.infer("tiny", [numbers])),
        "encoding": attempt(lambda: client.infer("tiny", [texts_input([b"\xff\xfe"], [1])])),
        "output": attempt(lambda: client.infer("tiny", one, outputs=outputs)),
        "unsupported": attempt(lambda: client.infer("tiny", one, parameters={"beam_width": 4})),
        "type": attempt(lambda: client.infer("tiny", one, parameters={"max_tokens": "many"})),
        "range": attempt(lambda: client.infer("tiny", one, parameters={"top_p": "1.5"})),
        "metadata": attempt(lambda: client.get_model_metadata("another")),
    }


def main() -> None:
    address = sys.argv[1]
    with triton.InferenceServerClient(address) as client:
        said = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready("tiny"),
            "other_ready": client.is_model_ready("another"),
            "server": client.get_server_metadata(as_json=True),
            "model": client.get_model_metadata("tiny", as_json=True),
            "infer": infer(client),
            "infer_async": asyncio.run(infer_async(address)),
            "errors": errors(client),
        }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
