"""`inference.GRPCInferenceService`, the Open Inference Protocol v2: texts in, texts out. Registered by `server.py`.

`ModelInfer` takes one BYTES tensor, `text_input`, and generates for each element; sampling comes as parameters of the
request. What it gives are tensors of the same shape: see `OUTPUTS`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flexpert_proto import generation_pb2, open_inference_pb2
from flexpert_proto import open_inference_pb2 as pb
from flexpert_workers.errors import FlexpertError, InvalidRequest
from flexpert_workers.ingress.caller import from_context
from flexpert_workers.ingress.intake import Intake
from flexpert_workers.ingress.model import ServedModel
from flexpert_workers.ingress.status import Context, abort
from flexpert_workers.ingress.streams import Delta, Stream
from flexpert_workers.ingress.tensors import pack, texts_of
from flexpert_workers.ingress.validate import UnknownModel, check_name

DESCRIPTOR = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

SERVER_NAME = "flexpert"
MODEL_VERSION = "1"
TEXT_INPUT = "text_input"
MAX_TEXTS = 64


@dataclass(frozen=True)
class Output:
    """One output tensor of a text's generation, and how its element is made."""

    datatype: str
    element: Callable[[Stream, str], Any]


OUTPUTS = {
    "text_output": Output("BYTES", lambda _, text: text.encode()),
    "finish_reason": Output("BYTES", lambda stream, _: str(stream.finish).encode()),
    "prompt_tokens": Output("UINT32", lambda stream, _: len(stream.request.prompt_ids)),
    "completion_tokens": Output("UINT32", lambda stream, _: len(stream.output_ids)),
}


class OpenInferenceService:
    """Serves the protocol's six methods."""

    def __init__(self, intake: Intake, is_ready: Callable[[], bool]) -> None:
        self._intake = intake
        self._is_ready = is_ready

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: N802
        """Whether the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        """Whether requests may come."""
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: N802
        """Whether requests for a model may come; one that is not served is not ready."""
        if not self._is_ready():
            return pb.ModelReadyResponse(ready=False)
        served = request.name in (await self._intake.model()).names and request.version in ("", MODEL_VERSION)
        return pb.ModelReadyResponse(ready=served)

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """What this server is."""
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=_own_version())

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """Inputs and outputs of the model."""
        try:
            model = await self._intake.model()
            _check_model(model, request.name, request.version)
        except FlexpertError as error:
            await abort(context, error)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[MODEL_VERSION],
            platform=SERVER_NAME,
            inputs=[tensor(name=TEXT_INPUT, datatype="BYTES", shape=[-1])],
            outputs=[tensor(name=name, datatype=output.datatype, shape=[-1]) for name, output in OUTPUTS.items()],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        """Generate for each text; the call's end, or the failure of one, cancels all."""
        try:
            wanted = _wanted_outputs(request)
            _check_model(await self._intake.model(), request.model_name, request.model_version)
            asked = _to_generate(request)
            async with self._intake.accept(asked, from_context(context)) as streams:
                return _response(request, wanted, streams, await self._complete(streams))
        except FlexpertError as error:
            await abort(context, error)

    async def _complete(self, streams: Sequence[Stream]) -> list[str]:
        """Each stream's whole text."""
        if len(streams) == 1:
            return [await _text(self._intake.run(streams[0]))]
        tasks: list[asyncio.Task[str]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks += [group.create_task(_text(self._intake.run(stream))) for stream in streams]
        except* FlexpertError as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]


async def _text(deltas: AsyncGenerator[Delta, None]) -> str:
    async with aclosing(deltas) as pieces:
        return "".join([delta.text async for delta in pieces])


def _check_model(model: ServedModel, name: str, model_version: str) -> None:
    check_name(name, model)
    if model_version not in ("", MODEL_VERSION):
        raise UnknownModel(f"version {model_version!r} of model {name!r} is not served here; what is: {MODEL_VERSION}")


def _wanted_outputs(request: pb.ModelInferRequest) -> list[str]:
    for position, output in enumerate(request.outputs):
        if output.name not in OUTPUTS:
            raise InvalidRequest(f"outputs[{position}].name", f"{output.name!r} is none of {', '.join(OUTPUTS)}")
    return [output.name for output in request.outputs] or list(OUTPUTS)


def _to_generate(request: pb.ModelInferRequest) -> list[generation_pb2.GenerateRequest]:
    texts = texts_of(request, TEXT_INPUT, MAX_TEXTS)
    parameters = generation_pb2.SamplingParameters()
    for name, parameter in request.parameters.items():
        _set(parameters, name, parameter)
    return [
        generation_pb2.GenerateRequest(model=request.model_name, text=text, parameters=parameters) for text in texts
    ]


def _set(parameters: generation_pb2.SamplingParameters, name: str, parameter: pb.InferParameter) -> None:
    """Set a sampling parameter; clients without numbers of its kind send them as strings."""
    field = f"parameters[{name!r}]"
    kind = _KINDS.get(name)
    if kind is None:
        raise InvalidRequest(field, f"is not supported; what is: {', '.join(_KINDS)}")
    choice = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, choice) if choice else None
    try:
        converted = kind(value)
        if name == "stop":
            parameters.stop.append(converted)
        else:
            setattr(parameters, name, converted)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(field, f"{value!r} is no value for it") from error


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return float(value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_KINDS: dict[str, Callable[[object], Any]] = {
    "max_tokens": _integer,
    "temperature": _real,
    "top_p": _real,
    "top_k": _integer,
    "seed": _integer,
    "stop": _string,
    "ignore_eos": _truth,
}


def _response(
    request: pb.ModelInferRequest, wanted: Sequence[str], streams: Sequence[Stream], texts: Sequence[str]
) -> pb.ModelInferResponse:
    """The outputs, raw where the inputs were."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=MODEL_VERSION, id=request.id)
    for name in wanted:
        output = OUTPUTS[name]
        elements = [output.element(stream, text) for stream, text in zip(streams, texts, strict=True)]
        tensor = response.outputs.add(name=name, datatype=output.datatype, shape=request.inputs[0].shape)
        if request.raw_input_contents:
            response.raw_output_contents.append(_raw(output, elements))
        elif output.datatype == "BYTES":
            tensor.contents.bytes_contents.extend(elements)
        else:
            tensor.contents.uint_contents.extend(elements)
    return response


def _raw(output: Output, elements: Sequence[Any]) -> bytes:
    if output.datatype == "BYTES":
        return pack(elements)
    return b"".join(int(element).to_bytes(4, "little") for element in elements)


def _own_version() -> str:
    try:
        return version("flexpert")
    except PackageNotFoundError:
        return "unknown"
