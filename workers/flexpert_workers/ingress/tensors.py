"""Tensors of texts, as the Open Inference Protocol carries them. Pure; used by `open_inference.py`.

A BYTES tensor is either in its `contents`, or in the request's raw contents: there each element has its length before
it, four bytes, little-endian.
"""

import math
import struct
from collections.abc import Iterable, Sequence

from flexpert_proto import open_inference_pb2 as pb
from flexpert_workers.errors import InvalidRequest

_LENGTH = struct.Struct("<I")


def texts_of(request: pb.ModelInferRequest, name: str, most: int) -> list[str]:
    """The texts of the request's only input.

    Args:
        request: As it came from the wire.
        name: What the input has to be called.
        most: Elements that it may have.

    Raises:
        InvalidRequest: The inputs are not one BYTES tensor of that name, with as many elements as its shape says.
    """
    if [tensor.name for tensor in request.inputs] != [name]:
        given = ", ".join(repr(tensor.name) for tensor in request.inputs) or "none"
        raise InvalidRequest("inputs", f"give one input, {name!r}; there are: {given}")
    tensor = request.inputs[0]
    if tensor.datatype != "BYTES":
        raise InvalidRequest(f"inputs[0].datatype ({name})", f"is {tensor.datatype!r}; it has to be 'BYTES'")
    elements = _elements(request, tensor)
    count = _count(tensor.shape)
    if len(elements) != count:
        raise InvalidRequest(f"inputs[0].shape ({name})", f"says {count} elements; there are {len(elements)}")
    if not 1 <= count <= most:
        raise InvalidRequest(f"inputs[0].shape ({name})", f"says {count} elements; give 1 to {most}")
    return [_text(element, f"inputs[0] ({name})[{number}]") for number, element in enumerate(elements)]


def pack(elements: Iterable[bytes]) -> bytes:
    """A BYTES tensor's raw contents."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def unpack(raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor's raw contents.

    Raises:
        InvalidRequest: A length points behind the end.
    """
    elements, position = [], 0
    while position < len(raw):
        start = position + _LENGTH.size
        end = start + _LENGTH.unpack_from(raw, position)[0] if start <= len(raw) else math.inf
        if end > len(raw):
            raise InvalidRequest("raw_input_contents[0]", f"the element at byte {position} ends behind the contents")
        elements.append(raw[start : int(end)])
        position = int(end)
    return elements


def _elements(request: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor) -> Sequence[bytes]:
    if not request.raw_input_contents:
        return tensor.contents.bytes_contents
    if len(request.raw_input_contents) != 1:
        raise InvalidRequest("raw_input_contents", f"has {len(request.raw_input_contents)} tensors for 1 input")
    if tensor.HasField("contents"):
        raise InvalidRequest("inputs[0].contents", "must be left out where raw_input_contents are given")
    return unpack(request.raw_input_contents[0])


def _count(shape: Sequence[int]) -> int:
    if any(size < 0 for size in shape):
        raise InvalidRequest("inputs[0].shape", f"{list(shape)} has a negative size")
    return math.prod(shape)


def _text(element: bytes, field: str) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(field, f"is not UTF-8 at byte {error.start}") from error
