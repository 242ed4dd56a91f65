"""Pages and dense weights of FP8 and mxfp4 checkpoints equal an independent dequantisation, bit for bit."""

import json

import pytest
import quantised_checkpoints as quantised
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.checkpoint.dequantise import read_elements, read_weight
from flexpert_workers.checkpoint.files import SINGLE_FILE, CheckpointFiles, open_files
from flexpert_workers.checkpoint.quantisation import BlockFp8, Mxfp4, parse_quantisation
from flexpert_workers.checkpoint.walk import tiny_model
from flexpert_workers.checkpoint.weights import find_weights
from flexpert_workers.engine.dense import load_dense
from flexpert_workers.errors import CorruptCheckpoint, UnsupportedArchitecture

SPEC_DTYPES = {"Float32": torch.float32, "BFloat16": torch.bfloat16, "Float16": torch.float16}

PARTIAL = {"hidden_size": 160, "moe_intermediate_size": 136, "intermediate_size": 200}
EVEN = {"hidden_size": 256, "moe_intermediate_size": 128, "intermediate_size": 256, "head_dim": 64}


def assert_same_bits(actual, expected):
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    width = {4: torch.int32, 2: torch.int16}[expected.itemsize]
    assert torch.equal(actual.contiguous().view(width), expected.contiguous().view(width))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name → a quantised checkpoint, to be read only."""
    save = {
        "qwen3 even": lambda folder: quantised.save_fp8(
            tiny_model(transformers.Qwen3MoeForCausalLM, **EVEN), folder, scale_dtype=torch.bfloat16
        ),
        "qwen3 partial": lambda folder: quantised.save_fp8(
            tiny_model(transformers.Qwen3MoeForCausalLM, **PARTIAL), folder
        ),
        "deepseek partial": lambda folder: quantised.save_fp8(
            tiny_model(transformers.DeepseekV3ForCausalLM, **PARTIAL, kv_lora_rank=140), folder
        ),
        "gpt-oss": lambda folder: quantised.save_mxfp4(
            tiny_model(transformers.GptOssForCausalLM, hidden_size=64, intermediate_size=96), folder
        ),
    }
    made = {}

    def folder_of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("quantised")
            save[name](made[name])
        return made[name]

    return folder_of


@pytest.fixture
def broken(folders, tmp_path):
    """The same, in a folder of the test's own, to be broken."""

    def copy(name):
        for file in folders(name).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    return copy


def expected_fp8(tensors, checkpoint, layer, index, dequantise):
    prefix = f"{checkpoint.moe_layer_modules[layer]}.{index}"
    names = {part: f"{prefix}.{part}_proj.weight" for part in ("gate", "up", "down")}
    parts = {part: dequantise(tensors[name], tensors[f"{name}_scale_inv"]) for part, name in names.items()}
    return {"gate_up_proj": torch.cat([parts["gate"], parts["up"]]), "down_proj": parts["down"]}


@pytest.mark.parametrize("dtype", SPEC_DTYPES)
@pytest.mark.parametrize("name", ["qwen3 even", "qwen3 partial", "deepseek partial"])
def test_fp8_pages_equal_the_definition(folders, name, dtype):
    checkpoint = open_checkpoint(folders(name).as_uri(), dtype)
    tensors = load_file(folders(name) / SINGLE_FILE)
    for layer in range(checkpoint.num_layers):
        for index in range(checkpoint.num_experts):
            views = checkpoint.layout.views(checkpoint.read_expert(layer, index))
            expected = expected_fp8(tensors, checkpoint, layer, index, quantised.dequantise_fp8)
            for segment, tensor in expected.items():
                assert_same_bits(views[segment], tensor.to(SPEC_DTYPES[dtype]))


@pytest.mark.parametrize("dtype", ["Float32", "BFloat16"])
def test_fp8_pages_equal_transformers_own_dequantisation(folders, dtype):
    """It divides the weight evenly by the grid of scales, so it serves as a reference where no block is partial."""
    checkpoint = open_checkpoint(folders("qwen3 even").as_uri(), dtype)
    tensors = load_file(folders("qwen3 even") / SINGLE_FILE)
    operation = Fp8Dequantize(None)

    def dequantise(weight, scales):
        return operation._dequantize_one(weight, scales, output_dtype=SPEC_DTYPES[dtype])

    views = checkpoint.layout.views(checkpoint.read_expert(1, 2))
    for segment, tensor in expected_fp8(tensors, checkpoint, 1, 2, dequantise).items():
        assert_same_bits(views[segment], tensor)


@pytest.mark.parametrize("dtype", SPEC_DTYPES)
def test_mxfp4_pages_equal_transformers_own_dequantisation(folders, dtype):
    folder = folders("gpt-oss")
    checkpoint = open_checkpoint(folder.as_uri(), dtype)
    reference = transformers.GptOssForCausalLM.from_pretrained(
        folder, dtype=SPEC_DTYPES[dtype], quantization_config=transformers.Mxfp4Config(dequantize=True)
    )
    for layer, path in enumerate(checkpoint.moe_layer_modules):
        experts = reference.get_submodule(path)
        for index in range(checkpoint.num_experts):
            views = checkpoint.layout.views(checkpoint.read_expert(layer, index))
            assert views.keys() == dict(experts.named_parameters()).keys()
            for segment, view in views.items():
                assert_same_bits(view, experts.get_parameter(segment)[index].detach())


def test_served_in_bfloat16_unless_told_otherwise(broken):
    for name in ("qwen3 even", "gpt-oss"):
        folder = broken(name)
        assert open_checkpoint(folder.as_uri()).dtype == torch.bfloat16
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": None}))
        assert open_checkpoint(folder.as_uri()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["Float32", "BFloat16"])
@pytest.mark.parametrize("name", ["qwen3 partial", "deepseek partial", "gpt-oss"])
def test_dense_weights_are_dequantised_and_experts_stay_out(folders, name, dtype, monkeypatch):
    read = set()
    read_into = CheckpointFiles.read_into

    def recorded(files, tensor, offset, target):
        read.add(tensor.name)
        read_into(files, tensor, offset, target)

    monkeypatch.setattr(CheckpointFiles, "read_into", recorded)
    checkpoint = open_checkpoint(folders(name).as_uri(), dtype)
    tensors = load_file(folders(name) / SINGLE_FILE)
    dense = load_dense(checkpoint)
    assert dense.expert_bytes == 0
    assert read
    assert not [tensor for tensor in read if ".mlp.experts." in tensor]
    compared = 0
    for parameter_name, parameter in dense.model.named_parameters():
        stored = tensors[parameter_name]
        scales = tensors.get(f"{parameter_name}_scale_inv")
        expected = stored.float() if scales is None else quantised.dequantise_fp8(stored, scales)
        assert_same_bits(parameter, expected.to(parameter.dtype))
        compared += scales is not None
    assert compared or name == "gpt-oss"


# ---------------------------------------------------------------------------------------- one weight


def store(folder, **tensors):
    save_file(tensors, folder / SINGLE_FILE)
    return open_files(folder)


@pytest.mark.parametrize("shape", [(256, 384), (300, 130), (1, 1), (129, 127), (3, 130, 200), (2, 2, 128, 64)])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_any_part_of_an_fp8_weight_can_be_read(tmp_path, shape, scale_dtype):
    matrices = [quantised.quantise_fp8(torch.randn(shape[-2:])) for _ in range(torch.Size(shape[:-2]).numel())]
    values = torch.stack([values for values, _ in matrices]).view(shape)
    grid = matrices[0][1].shape
    scales = torch.stack([scales for _, scales in matrices]).view(*shape[:-2], *grid).to(scale_dtype)
    weights = find_weights(store(tmp_path, w=values, w_scale_inv=scales), BlockFp8((128, 128)))
    by_matrix = zip(values.view(-1, *shape[-2:]), scales.view(-1, *grid), strict=True)
    expected = torch.stack([quantised.dequantise_fp8(*matrix) for matrix in by_matrix])
    assert_same_bits(read_weight(weights, weights.by_name["w"], torch.float32), expected.view(shape))
    flat = expected.view(-1)
    for start, stop in [(0, 1), (len(flat) // 3, len(flat)), (len(flat) // 2, len(flat) // 2 + 1)]:
        part = read_elements(weights, weights.by_name["w"], start, stop - start, torch.float32)
        assert_same_bits(part.clone(), flat[start:stop])


@pytest.mark.parametrize("stored", [torch.uint8, torch.float8_e8m0fnu])
def test_scales_may_be_exponents(tmp_path, stored):
    values = torch.randn(130, 130).to(torch.float8_e4m3fn)
    exponents = torch.tensor([[0, 1], [127, 200]], dtype=torch.uint8)
    weights = find_weights(store(tmp_path, w=values, w_scale_inv=exponents.view(stored)), BlockFp8((128, 128)))
    expected = quantised.dequantise_fp8(values, torch.exp2(exponents.double() - 127))
    assert_same_bits(read_weight(weights, weights.by_name["w"], torch.float32), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_byte_and_every_exponent_of_mxfp4(tmp_path, dtype):
    """All 256 bytes with each of the 255 exponents (the last one, NaN in the specification, is infinite there)."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 255, 1, 1)
    scales = torch.arange(255, dtype=torch.uint8).view(1, 255, 1).repeat(1, 1, 16)
    weights = find_weights(store(tmp_path, w_blocks=blocks, w_scales=scales), Mxfp4())
    expected = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    assert_same_bits(read_weight(weights, weights.by_name["w"], dtype), expected)
    assert_same_bits(expected, quantised.dequantise_mxfp4(blocks, scales).to(dtype))


# ---------------------------------------------------------------------------------------- what is refused

DOWN = "model.layers.1.mlp.experts.2.down_proj.weight"


def drop(name):
    return lambda tensors: tensors.pop(name)


def replace(name, make):
    return lambda tensors: tensors.update({name: make(tensors[name]).contiguous()})


@pytest.mark.parametrize(
    ("name", "change", "tensor", "reason"),
    [
        ("qwen3 partial", drop(f"{DOWN}_scale_inv"), DOWN, f"its scales '{DOWN}_scale_inv' are missing"),
        (
            "qwen3 partial",
            drop("model.layers.0.self_attn.q_proj.weight_scale_inv"),
            "model.layers.0.self_attn.q_proj.weight",
            "are missing",
        ),
        (
            "qwen3 partial",
            replace(f"{DOWN}_scale_inv", lambda scales: scales[:, :1]),
            f"{DOWN}_scale_inv",
            rf"has shape \[2, 1\], but '{DOWN}' of shape \[160, 136\] in blocks of \[128, 128\] needs \[2, 2\]",
        ),
        ("qwen3 partial", replace(f"{DOWN}_scale_inv", torch.Tensor.long), f"{DOWN}_scale_inv", "scales as I64"),
        ("qwen3 partial", replace(DOWN, torch.Tensor.bfloat16), DOWN, "is stored as BF16, but has FP8 scales"),
        ("qwen3 partial", drop(DOWN), "model.layers.1.mlp.experts.2.down_proj.weight", "is missing"),
        (
            "gpt-oss",
            drop("model.layers.0.mlp.experts.down_proj_scales"),
            "model.layers.0.mlp.experts.down_proj_blocks",
            "its scales 'model.layers.0.mlp.experts.down_proj_scales' are missing",
        ),
        (
            "gpt-oss",
            replace("model.layers.0.mlp.experts.down_proj_scales", lambda scales: scales[:, :, 1:]),
            "model.layers.0.mlp.experts.down_proj_scales",
            r"has shape \[4, 64, 2\], but .* needs \[4, 64, 3\]",
        ),
        (
            "gpt-oss",
            replace("model.layers.0.mlp.experts.down_proj_blocks", lambda blocks: blocks[..., :8]),
            "model.layers.0.mlp.experts.down_proj_blocks",
            r"not \[experts, rows, groups, 16\]",
        ),
        (
            "gpt-oss",
            replace("model.layers.0.mlp.experts.down_proj_blocks", torch.Tensor.char),
            "model.layers.0.mlp.experts.down_proj_blocks",
            "is stored as I8",
        ),
        (
            "gpt-oss",
            lambda tensors: tensors.update(
                {
                    f"model.layers.1.mlp.experts.down_proj_{kind}": tensors[
                        f"model.layers.1.mlp.experts.down_proj_{kind}"
                    ][:, :, :2].contiguous()
                    for kind in ("blocks", "scales")
                }
            ),
            "model.layers.1.mlp.experts.down_proj_blocks",
            r"the shape \[64, 64\], the configuration \[96, 64\]",
        ),
    ],
)
def test_broken_scales_are_named_with_their_file(broken, name, change, tensor, reason):
    folder = broken(name)
    quantised.edit(folder, change)
    with pytest.raises(CorruptCheckpoint, match=reason) as caught:
        open_checkpoint(folder.as_uri())
    assert repr(tensor) in str(caught.value)
    assert str(folder if "is missing" in reason else folder / SINGLE_FILE) in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "architecture", "reason"),
    [
        ({"quant_method": "fp8"}, "MixtralForCausalLM", "fp8 without a scale per block"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "MixtralForCausalLM", "fp8 without a scale per block"),
        (quantised.FP8_CONFIG | {"fmt": "e5m2"}, "MixtralForCausalLM", "fp8 with fmt e5m2"),
        (quantised.FP8_CONFIG | {"expert_dtype": "fp4"}, "MixtralForCausalLM", "fp8 with expert_dtype fp4"),
        ({"quant_method": "mxfp4"}, "MixtralForCausalLM", "mxfp4"),
        ({"quant_method": "awq", "bits": 4}, "GptOssForCausalLM", "awq"),
        (17, "GptOssForCausalLM", "17"),
    ],
)
def test_other_formats_are_refused_by_name(declared, architecture, reason):
    with pytest.raises(UnsupportedArchitecture, match=rf"{architecture} is not served: .*\({reason}"):
        parse_quantisation(declared, architecture)


def test_published_declarations_are_understood():
    assert parse_quantisation(None, "MixtralForCausalLM") is None
    assert parse_quantisation(quantised.FP8_CONFIG, "DeepseekV3ForCausalLM") == BlockFp8((128, 128))
    assert parse_quantisation(quantised.MXFP4_CONFIG, "GptOssForCausalLM") == Mxfp4()
