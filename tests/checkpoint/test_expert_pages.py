"""Pages read by byte range equal the experts of a model that transformers loaded."""

import pytest
import torch
import transformers

from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.checkpoint.layout import ALIGNMENT_BYTES

FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "glm4_moe"]


def as_bytes(tensor):
    return tensor.detach().contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", ["Auto", "BFloat16"])
@pytest.mark.parametrize("original", [True, False], ids=["original", "fused"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pages_equal_the_loaded_experts(saved, family, original, dtype):
    folder = saved(family, original)
    checkpoint = open_checkpoint(folder.as_uri(), dtype)
    reference = getattr(transformers, checkpoint.architecture).from_pretrained(folder, dtype=checkpoint.dtype)
    for layer, path in enumerate(checkpoint.moe_layer_modules):
        experts = reference.get_submodule(path)
        for index in range(checkpoint.num_experts):
            views = checkpoint.layout.views(checkpoint.read_expert(layer, index))
            assert views.keys() == dict(experts.named_parameters()).keys()
            for name, view in views.items():
                expected = experts.get_parameter(name)[index]
                assert view.shape == expected.shape
                assert torch.equal(as_bytes(view), as_bytes(expected)), (layer, index, name)


@pytest.mark.parametrize(("stored", "served"), [(torch.bfloat16, "Float32"), (torch.float16, "Float32")])
def test_half_precision_is_widened_exactly(saved, tmp_path, stored, served):
    model = transformers.MixtralForCausalLM.from_pretrained(saved("mixtral"), dtype=stored)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path.as_uri(), served)
    views = checkpoint.layout.views(checkpoint.read_expert(1, 2))
    assert torch.equal(views["down_proj"], model.model.layers[1].mlp.experts.down_proj[2].float())


def test_both_formats_are_as_saved(saved):
    per_expert = open_checkpoint(saved("mixtral", original=True).as_uri())
    fused = open_checkpoint(saved("mixtral", original=False).as_uri())
    assert any("experts.3" in name for name in per_expert.files.tensors)
    assert not any("experts.3" in name for name in fused.files.tensors)
    assert per_expert.read_expert(0, 3) == fused.read_expert(0, 3)


def test_sharded_checkpoints_are_read(saved, tmp_path):
    model = transformers.MixtralForCausalLM.from_pretrained(saved("mixtral"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    sharded = open_checkpoint(tmp_path.as_uri())
    assert len(sharded.files.shards) > 2
    whole = open_checkpoint(saved("mixtral").as_uri())
    for index in range(whole.num_experts):
        assert sharded.read_expert(1, index) == whole.read_expert(1, index)


def test_segments_are_aligned_and_apart(saved):
    checkpoint = open_checkpoint(saved("gpt_oss").as_uri(), "BFloat16")
    layout = checkpoint.layout
    assert [segment.name for segment in layout.segments] == [
        "gate_up_proj",
        "gate_up_proj_bias",
        "down_proj",
        "down_proj_bias",
    ]
    end = 0
    for segment in layout.segments:
        assert segment.offset % ALIGNMENT_BYTES == 0
        assert segment.offset >= end
        end = segment.offset + segment.nbytes
    assert end <= layout.page_bytes < end + ALIGNMENT_BYTES


def test_views_share_the_page(saved):
    checkpoint = open_checkpoint(saved("olmoe").as_uri())
    page = checkpoint.read_expert(0, 0)
    checkpoint.layout.views(page)["down_proj"].zero_()
    assert not checkpoint.layout.views(page)["down_proj"].any()


def test_experts_module_computes_with_the_pages(saved):
    checkpoint = open_checkpoint(saved("gpt_oss").as_uri())
    module = checkpoint.experts_module()
    assert module.is_transposed
    assert module.has_bias
    assert not module.is_concatenated
    assert all(parameter.is_meta for parameter in module.parameters())
    reference = transformers.GptOssForCausalLM.from_pretrained(saved("gpt_oss")).model.layers[0].mlp.experts
    rows = torch.randn(3, 2 * checkpoint.config.intermediate_size)
    assert torch.equal(module._apply_gate(rows), reference._apply_gate(rows))
    assert checkpoint.experts_module() is not module
