"""Tiny checkpoints quantised as DeepSeek-V3 (FP8 with block scales) and gpt-oss (mxfp4) are published, and what they
stand for by definition.
"""

import json
import re
from itertools import product

import torch
from safetensors.torch import load_file, save_file

from flexpert_workers.checkpoint.files import SINGLE_FILE

FP8_CONFIG = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
MXFP4_CONFIG = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
FP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])

_FP8_WEIGHTS = re.compile(r"\.(self_attn|mlp|shared_experts|experts\.\d+)\.\w+_proj(_with_mqa)?\.weight$")
_MXFP4_WEIGHTS = re.compile(r"experts\.(gate_up|down)_proj$")


def tiles(shape, block):
    """The blocks of a matrix, each as a pair of slices."""
    starts = product(range(0, shape[0], block[0]), range(0, shape[1], block[1]))
    return [(slice(row, row + block[0]), slice(column, column + block[1])) for row, column in starts]


def quantise_fp8(weight, block=(128, 128)):
    """(E4M3 values, scales [ceil, ceil]): each block's largest value becomes E4M3's largest, 448."""
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = []
    for tile in tiles(weight.shape, block):
        scale = weight[tile].abs().max().float() / 448
        values[tile] = (weight[tile].float() / scale).to(torch.float8_e4m3fn)
        scales.append(scale)
    return values, torch.stack(scales).view(-(-weight.shape[0] // block[0]), -1)


def dequantise_fp8(values, scales, block=(128, 128)):
    """Block by block: value times scale, in float32."""
    weight = torch.empty(values.shape)
    for tile, scale in zip(tiles(values.shape, block), scales.reshape(-1), strict=True):
        weight[tile] = values[tile].float() * scale.float()
    return weight


def quantise_mxfp4(weight):
    """(blocks, scales) of a parameter [experts, columns, rows], packed along its columns."""
    groups = weight.transpose(1, 2).unflatten(-1, (-1, 32)).float()
    exponents = groups.abs().amax(-1).log2().floor() - 2
    scaled = groups / exponents.exp2()[..., None]
    codes = (scaled[..., None] - FP4_VALUES).abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents + 127).to(torch.uint8)


def dequantise_mxfp4(blocks, scales):
    """The float32 parameter [experts, columns, rows] that (blocks, scales) stand for."""
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).int()
    values = FP4_VALUES[codes] * torch.exp2(scales.float() - 127)[..., None]
    return values.flatten(-2).transpose(1, 2).contiguous()


def save_fp8(model, folder, dequantised=None, scale_dtype=torch.float32):
    """Write `model` quantised into `folder`, and what it then is, in float32, into `dequantised`."""
    model.save_pretrained(folder, save_original_format=True)
    tensors = load_file(folder / SINGLE_FILE)
    exact = dict(tensors)
    for name in [name for name in tensors if _FP8_WEIGHTS.search(name)]:
        values, scales = quantise_fp8(tensors[name])
        tensors[name], tensors[f"{name}_scale_inv"] = values, scales.to(scale_dtype)
        exact[name] = dequantise_fp8(values, scales.to(scale_dtype))
    if dequantised is not None:
        model.save_pretrained(dequantised, save_original_format=True)
        save_file(exact, dequantised / SINGLE_FILE, metadata={"format": "pt"})
    write(folder, tensors, FP8_CONFIG)


def save_mxfp4(model, folder):
    """Write `model`, a gpt-oss, with its experts quantised."""
    model.save_pretrained(folder)
    tensors = load_file(folder / SINGLE_FILE)
    for name in [name for name in tensors if _MXFP4_WEIGHTS.search(name)]:
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = quantise_mxfp4(tensors.pop(name))
    write(folder, tensors, MXFP4_CONFIG)


def write(folder, tensors, quantisation):
    """Replace a folder's tensors and what its configuration declares, as published: in bfloat16 otherwise."""
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    path = folder / "config.json"
    changes = {"quantization_config": quantisation, "dtype": "bfloat16"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit(folder, change):
    """Let `change` edit the stored tensors in place."""
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
