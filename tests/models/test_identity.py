"""Greedy fp32 text through expert workers equals transformers' own, for the eight families, in both formats."""

import pytest
import transformers
from quantised_checkpoints import save_fp8, save_mxfp4

from flexpert_workers.checkpoint import Checkpoint
from flexpert_workers.checkpoint.walk import compare, process_worker, tiny_model

FAMILIES = [
    "MixtralForCausalLM",
    "OlmoeForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "GptOssForCausalLM",
    "Glm4MoeForCausalLM",
]


MAX_NEAR_TIES = 1
"""Of three prompts; more would mean that the comparison says nothing."""


def write(architecture, folder, original=True):
    model = tiny_model(getattr(transformers, architecture))
    model.save_pretrained(folder, save_original_format=original)
    return folder.as_uri()


def check(comparison, record_property):
    record_property("near_ties", comparison.near_ties)
    assert comparison.num_tokens == 36
    assert comparison.num_different == comparison.near_ties
    assert comparison.near_ties <= MAX_NEAR_TIES


@pytest.mark.parametrize("architecture", FAMILIES)
def test_text_is_that_of_generate(architecture, tmp_path, record_property):
    """Through three workers, from the fused format; the walk does it with two, from the original one."""
    check(compare(write(architecture, tmp_path, original=False), num_workers=3), record_property)


def test_text_is_that_of_generate_through_processes(tmp_path, record_property):
    check(compare(write("GptOssForCausalLM", tmp_path), num_workers=2, start=process_worker), record_property)


def test_the_comparison_can_fail(tmp_path, monkeypatch):
    """Workers that hold the wrong experts give another text."""
    fill_page = Checkpoint.fill_page

    def fill_with_neighbour(self, layer, index, *others):
        fill_page(self, layer, (index + 1) % self.num_experts, *others)

    monkeypatch.setattr(Checkpoint, "fill_page", fill_with_neighbour)
    assert not compare(write("MixtralForCausalLM", tmp_path)).is_identical


@pytest.mark.parametrize("architecture", ["Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM"])
def test_text_of_an_fp8_checkpoint_is_that_of_the_dequantised_model(architecture, tmp_path, record_property):
    """Matrices of several blocks of 128, the last ones partial."""
    sizes = {"hidden_size": 160, "moe_intermediate_size": 136, "intermediate_size": 200}
    folder, dequantised = tmp_path / "fp8", tmp_path / "fp32"
    save_fp8(tiny_model(getattr(transformers, architecture), **sizes), folder, dequantised)
    check(compare(folder.as_uri(), reference=dequantised.as_uri()), record_property)


def test_text_of_an_mxfp4_checkpoint_is_that_of_the_dequantised_model(tmp_path, record_property):
    """transformers dequantises the reference itself."""
    folder, dequantised = tmp_path / "mxfp4", tmp_path / "fp32"
    save_mxfp4(tiny_model(transformers.GptOssForCausalLM, hidden_size=64, intermediate_size=96), folder)
    reference = transformers.GptOssForCausalLM.from_pretrained(
        folder, dtype="float32", quantization_config=transformers.Mxfp4Config(dequantize=True)
    )
    reference.save_pretrained(dequantised, save_original_format=False)
    check(compare(folder.as_uri(), reference=dequantised.as_uri()), record_property)
