"""How a checkpoint's configuration says that its weights are quantised, and which of the ways are served.

`checkpoint.open_checkpoint` asks once; `weights` then joins the stored tensors that make one weight.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from flexpert_workers.errors import UnsupportedArchitecture

_MXFP4_ARCHITECTURES = frozenset({"GptOssForCausalLM"})
"""Who publishes `…_blocks` and `…_scales`, packed along the input dimension and stored output dimension first."""


class BlockFp8(msgspec.Struct, frozen=True, tag=True):
    """FP8 (E4M3) weights with one scale for each block of `block` (rows, columns), as DeepSeek-V3 publishes them."""

    block: tuple[int, int]


class Mxfp4(msgspec.Struct, frozen=True, tag=True):
    """Experts in mxfp4: FP4 (E2M1) values, two a byte, and a power of two for every 32 of them, as gpt-oss has them."""


Quantisation = BlockFp8 | Mxfp4


def parse_quantisation(declared: object, architecture: str) -> Quantisation | None:
    """What `quantization_config` of a configuration declares; None for a checkpoint that is not quantised.

    Raises:
        UnsupportedArchitecture: It declares a format that is not served; the message names it.
    """
    match declared:
        case None:
            return None
        case {"quant_method": "fp8", "weight_block_size": [int(rows), int(columns)], **rest} if min(rows, columns) > 0:
            _check_fp8(rest, architecture)
            return BlockFp8((rows, columns))
        case {"quant_method": "mxfp4"} if architecture in _MXFP4_ARCHITECTURES:
            return Mxfp4()
    raise _refused(architecture, _describe(declared))


def _check_fp8(declared: Mapping[Any, Any], architecture: str) -> None:
    """Refuse what goes under the same name but is stored otherwise."""
    for field, served in (("fmt", "e4m3"), ("expert_dtype", "fp8")):
        if declared.get(field, served) != served:
            raise _refused(architecture, f"fp8 with {field} {declared[field]}")


def _describe(declared: object) -> str:
    match declared:
        case {"quant_method": "fp8"}:
            return "fp8 without a scale per block (weight_block_size)"
        case {"quant_method": str(method)}:
            return method
    return str(declared)


def _refused(architecture: str, format_name: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"{architecture} is not served: its weights are quantised ({format_name}); give a checkpoint in BF16, F16, F32 "
        f"or FP8 with block scales, or gpt-oss in mxfp4"
    )
