"""Greedy fp32 text through expert workers equals transformers' own, for the eight families, in both formats."""

import pytest
import transformers

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
    read_expert = Checkpoint.read_expert

    def read_neighbour(self, layer, index):
        return read_expert(self, layer, (index + 1) % self.num_experts)

    monkeypatch.setattr(Checkpoint, "read_expert", read_neighbour)
    assert not compare(write("MixtralForCausalLM", tmp_path)).is_identical
