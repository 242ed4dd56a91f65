"""Experts that a worker computes without their class."""

import subprocess
import sys

import pytest
import torch

from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.checkpoint.plain import PlainExperts

FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "glm4_moe")
IMPORTS = """
import sys
from flexpert_workers.checkpoint import open_checkpoint

open_checkpoint(sys.argv[1], "Float32").experts_module()
sys.exit("transformers" in sys.modules)
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_experts_compute_what_their_class_computes(saved, family):
    checkpoint = open_checkpoint(saved(family).as_uri(), "Float32")
    theirs = checkpoint.experts
    if family == "gpt_oss":  # it gates with a function of its own
        assert checkpoint.form is None
        assert type(checkpoint.experts_module()) is type(theirs)
        return

    plain = checkpoint.experts_module()
    assert isinstance(plain, PlainExperts)
    projected = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain._apply_gate(projected), theirs._apply_gate(projected))
    for flag in ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm"):
        assert getattr(plain, flag) == getattr(theirs, flag)


def test_a_worker_of_plain_experts_needs_no_model_library(saved):
    source = saved("qwen3_moe").as_uri()
    open_checkpoint(source, "Float32")  # the first on a host finds out
    subprocess.run([sys.executable, "-c", IMPORTS, source], check=True)
