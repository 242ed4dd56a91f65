"""The facts of a checkpoint, its identity, and what is refused by name."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from flexpert_proto import names
from flexpert_workers.checkpoint import architectures, inspect, open_checkpoint
from flexpert_workers.checkpoint.files import SINGLE_FILE
from flexpert_workers.checkpoint.walk import tiny_config, tiny_model
from flexpert_workers.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    UnsupportedArchitecture,
)

FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "glm4_moe"]


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_equal_those_of_the_loaded_model(saved, family):
    checkpoint = open_checkpoint(saved(family).as_uri())
    model = getattr(transformers, checkpoint.architecture).from_pretrained(saved(family))
    experts = [model.get_submodule(path) for path in checkpoint.moe_layer_modules]
    expert_bytes = sum(parameter.nbytes for module in experts for parameter in module.parameters())
    assert checkpoint.dense_bytes == sum(parameter.nbytes for parameter in model.parameters()) - expert_bytes
    page_bytes = sum(segment.nbytes for segment in checkpoint.layout.segments)
    assert page_bytes * checkpoint.num_layers * checkpoint.num_experts == expert_bytes
    assert checkpoint.context_length == 256
    with torch.no_grad():
        cache = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
    kept = sum(layer.keys[..., 0, :].nbytes + layer.values[..., 0, :].nbytes for layer in cache.layers)
    assert checkpoint.kv_bytes_per_token == kept


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        ({"rope_type": "longrope", "original_max_position_embeddings": 64}, 64),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
    ],
    ids=["longrope", "dynamic", "yarn"],
)
def test_context_ends_where_positions_would_depend_on_the_batch(copied, rope, tokens):
    folder = copied()
    factors = {"rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    edit_config(folder, rope_parameters=factors | rope)
    assert open_checkpoint(folder.as_uri()).context_length == tokens


def test_layers_are_counted_among_moe_layers(saved):
    checkpoint = open_checkpoint(saved("deepseek_v3").as_uri())
    assert checkpoint.num_layers == 1
    assert checkpoint.moe_layer_modules == ("model.layers.1.mlp.experts",)
    assert (checkpoint.num_experts, checkpoint.experts_per_token) == (4, 2)


def test_latents_are_what_a_token_takes(saved):
    checkpoint = open_checkpoint(saved("deepseek_v3").as_uri(), "BFloat16")
    config = checkpoint.config
    per_layer = (config.kv_lora_rank + config.qk_rope_head_dim) * 2
    assert checkpoint.kv_bytes_per_token == per_layer * config.num_hidden_layers


def test_digest_tells_checkpoints_apart(saved, copied):
    digest = open_checkpoint(saved("mixtral").as_uri()).digest
    folder = copied()
    assert open_checkpoint(folder.as_uri()).digest == digest
    assert open_checkpoint(folder.as_uri(), "BFloat16").digest != digest
    edit_weights(folder, lambda tensors: tensors["lm_head.weight"].add_(1.0))
    changed = open_checkpoint(folder.as_uri()).digest
    assert changed != digest
    edit_config(folder, rms_norm_eps=1e-3)
    assert open_checkpoint(folder.as_uri()).digest not in (digest, changed)


def test_auto_is_the_checkpoints_own_dtype(copied):
    folder = copied()
    assert open_checkpoint(folder.as_uri()).dtype == torch.float32
    edit_config(folder, dtype="bfloat16")
    assert open_checkpoint(folder.as_uri()).dtype == torch.bfloat16
    edit_config(folder, dtype=None)
    assert open_checkpoint(folder.as_uri()).dtype == torch.float32
    edit_config(folder, dtype="float64")
    with pytest.raises(UnsupportedArchitecture, match=r"float64.*set model\.dtype"):
        open_checkpoint(folder.as_uri())
    with pytest.raises(CheckpointError, match="Float8"):
        open_checkpoint(folder.as_uri(), "Float8")


@pytest.mark.parametrize("source", ["/models/tiny", "file://host/models"])
def test_sources_that_name_no_folder(source):
    with pytest.raises(CheckpointNotFound, match="file:///"):
        open_checkpoint(source)


def test_remote_sources_are_opened_once_they_are_here(tmp_path, monkeypatch):
    monkeypatch.setenv(names.ENV_MODEL_CACHE, str(tmp_path))
    with pytest.raises(CheckpointNotFound, match=r"not resolved to a revision yet: .*fetch hf://org/model"):
        open_checkpoint("hf://org/model")
    with pytest.raises(CheckpointNotFound, match=f"is not whole in the cache .*{tmp_path}"):
        open_checkpoint(f"hf://org/model@{'a' * 40}")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointNotFound, match=f"{tmp_path}/none"):
        open_checkpoint((tmp_path / "none").as_uri())


def test_a_broken_configuration_is_named(copied):
    folder = copied()
    (folder / "config.json").write_text("{")
    with pytest.raises(CorruptCheckpoint, match=r"config\.json is not valid JSON"):
        open_checkpoint(folder.as_uri())
    (folder / "config.json").write_text("{}")
    with pytest.raises(CorruptCheckpoint, match="architectures"):
        open_checkpoint(folder.as_uri())


def test_a_missing_expert_is_named(copied):
    folder = copied()
    missing = next(name for name in load_file(folder / SINGLE_FILE) if name.endswith("experts.2.w1.weight"))
    edit_weights(folder, lambda tensors: tensors.pop(missing))
    with pytest.raises(CorruptCheckpoint, match=missing.replace(".", r"\.")):
        open_checkpoint(folder.as_uri())


def test_a_missing_expert_parameter_is_named(copied):
    folder = copied("mixtral", original=False)
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.experts.down_proj"))
    with pytest.raises(CorruptCheckpoint, match=r"model\.layers\.1\.mlp\.experts\.down_proj"):
        open_checkpoint(folder.as_uri())


def test_a_missing_dense_tensor_is_named(copied):
    folder = copied()
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CorruptCheckpoint, match=r"model\.norm\.weight"):
        open_checkpoint(folder.as_uri())


def test_tied_weights_need_not_be_stored(tmp_path):
    config = tiny_config(transformers.MixtralForCausalLM, tie_word_embeddings=True)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path.as_uri())
    assert "lm_head.weight" not in checkpoint.files.tensors
    untied = tiny_model(transformers.MixtralForCausalLM)
    assert checkpoint.dense_bytes < sum(parameter.nbytes for parameter in untied.parameters())


@pytest.mark.parametrize(("field", "value"), [("intermediate_size", 40), ("num_local_experts", 3), ("hidden_size", 16)])
def test_shapes_that_contradict_the_configuration(copied, field, value):
    for original in (True, False):
        folder = copied("mixtral", original)
        edit_config(folder, **{field: value})
        with pytest.raises(CorruptCheckpoint, match=r"experts|shape"):
            open_checkpoint(folder.as_uri())
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_quantised_weights_are_refused_by_name(copied):
    folder = copied("mixtral", original=False)

    def quantise(tensors):
        name = "model.layers.0.mlp.experts.down_proj"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    edit_weights(folder, quantise)
    with pytest.raises(UnsupportedArchitecture, match=r"experts\.down_proj' is stored as F8_E4M3"):
        open_checkpoint(folder.as_uri())
    edit_config(folder, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(UnsupportedArchitecture, match=r"MixtralForCausalLM.*mxfp4"):
        open_checkpoint(folder.as_uri())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MixtralForSequenceClassification"]}, "MixtralForSequenceClassification is not served"),
        ({"architectures": ["HomemadeForCausalLM"]}, "HomemadeForCausalLM"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "LlamaForCausalLM is not served"),
        ({"model_type": "homemade"}, "homemade"),
        (
            {"layer_types": ["linear_attention", "full_attention"]},
            "MixtralForCausalLM is not served: .*linear_attention",
        ),
    ],
)
def test_other_architectures_are_refused_by_name(copied, changes, message):
    folder = copied()
    edit_config(folder, **changes)
    with pytest.raises(UnsupportedArchitecture, match=message):
        open_checkpoint(folder.as_uri())


def test_a_window_that_only_the_mask_knows_is_refused(copied):
    folder = copied("qwen2_moe")
    edit_config(folder, use_sliding_window=True, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    with pytest.raises(UnsupportedArchitecture, match=r"Qwen2MoeForCausalLM is not served: its sliding window"):
        open_checkpoint(folder.as_uri())
    edit_config(folder, sliding_window=256)
    assert open_checkpoint(folder.as_uri()).context_length == 256


def test_a_model_without_experts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(architectures.ENV_UNLISTED, "try")
    tiny_model(transformers.LlamaForCausalLM).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match=r"LlamaForCausalLM is not served: .*experts"):
        open_checkpoint(tmp_path.as_uri())


def test_inspect_prints_the_facts(saved):
    source = saved("glm4_moe").as_uri()
    command = [sys.executable, "-m", "flexpert_workers.checkpoint.inspect", source, "Auto"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    checkpoint = open_checkpoint(source)
    printed = json.loads(result.stdout)
    assert len(printed.pop("revision")) == 40
    assert printed == {
        "architecture": "Glm4MoeForCausalLM",
        "digest": checkpoint.digest,
        "layers": 1,
        "experts": 4,
        "experts_per_token": 2,
        "expert_bytes": checkpoint.layout.page_bytes,
        "dense_bytes": checkpoint.dense_bytes,
        "kv_bytes_per_token": checkpoint.kv_bytes_per_token,
        "context_length": 256,
        "source": source,
        "fetched_bytes": 0,
    }


def test_inspect_says_what_is_wrong(tmp_path, capsys):
    assert inspect.main([(tmp_path / "none").as_uri(), "Auto"]) == inspect.EXIT_REFUSED == 3
    refusal = json.loads(capsys.readouterr().out)
    assert refusal["error"] == "CheckpointNotFound"
    assert "none" in refusal["message"]
