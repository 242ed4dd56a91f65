"""Tiny checkpoints of the eight named families, written once a session in either format."""

from pathlib import Path

import pytest
import transformers
from transformers.utils import logging as transformers_logging

from flexpert_workers.checkpoint.walk import tiny_model

FAMILIES = {
    "mixtral": "MixtralForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
}


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers():
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """(family, in the original format?) → the folder of its checkpoint, to be read only."""
    folders: dict[tuple[str, bool], Path] = {}

    def save(family, original=True):
        if (family, original) not in folders:
            folder = tmp_path_factory.mktemp(family)
            model = tiny_model(getattr(transformers, FAMILIES[family]))
            model.save_pretrained(folder, save_original_format=original)
            folders[family, original] = folder
        return folders[family, original]

    return save


@pytest.fixture
def copied(saved, tmp_path):
    """The same, in a folder of the test's own, to be broken."""

    def copy(family="mixtral", original=True):
        folder = tmp_path / "model"
        folder.mkdir()
        for file in saved(family, original).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    return copy
