"""torch's dtypes by the names that checkpoints and specs use. Whoever imports this imports torch."""

from collections.abc import Mapping

import torch

STORED: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the safetensors format's names; it has more, of which torch has none that can be sliced."""

SERVED: Mapping[str, torch.dtype] = {
    "Float32": torch.float32,
    "BFloat16": torch.bfloat16,
    "Float16": torch.float16,
}
"""By the names of a spec's `model.dtype`."""
