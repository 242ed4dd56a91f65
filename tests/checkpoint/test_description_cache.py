"""What a host remembers of a checkpoint: the same as finding it out, never stale or damaged, and without torch."""

import json
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexpert_proto import names
from flexpert_workers.checkpoint import architectures, checkpoint, description, open_checkpoint
from flexpert_workers.checkpoint.description import DescriptionCache, cache_folder, description_key
from flexpert_workers.checkpoint.files import SINGLE_FILE
from flexpert_workers.errors import CorruptCheckpoint

FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "glm4_moe"]


@pytest.fixture
def remembered(tmp_path, monkeypatch):
    """An empty cache."""
    folder = tmp_path / "remembered"
    monkeypatch.setenv(names.ENV_CHECKPOINT_CACHE, str(folder))
    return folder


@pytest.fixture
def found_out(monkeypatch):
    """A list that grows whenever a description is found out anew."""
    calls = []
    find_out = checkpoint._find_out

    def counted(*arguments):
        calls.append(arguments)
        return find_out(*arguments)

    monkeypatch.setattr(checkpoint, "_find_out", counted)
    return calls


def facts(opened):
    values = {name: getattr(opened, name) for name in opened.__dataclass_fields__ if name != "library"}
    return values | {"dtype": opened.dtype, "config": opened.config.to_dict()}


@pytest.mark.parametrize("dtype", ["Auto", "BFloat16"])
@pytest.mark.parametrize("original", [True, False], ids=["original", "fused"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_remembered_is_what_was_found_out(saved, remembered, found_out, family, original, dtype):
    source = saved(family, original).as_uri()
    first, second = open_checkpoint(source, dtype), open_checkpoint(source, dtype)
    assert len(found_out) == 1
    assert facts(first) == facts(second)
    assert first.read_expert(0, 3) == second.read_expert(0, 3)
    assert type(second.experts_module()) is type(first.experts_module())


_SECOND_PROCESS = """
import sys
from flexpert_workers.checkpoint import inspect, open_checkpoint
assert inspect.main([sys.argv[1], "Auto"]) == 0
opened = open_checkpoint(sys.argv[1])
opened.read_expert(0, 1)
print([name for name in ("torch", "transformers", "numpy") if name in sys.modules])
"""


def test_another_process_needs_neither_torch_nor_transformers(saved, remembered):
    """Nor to fill pages, where weights are served as they are stored."""
    source = saved("mixtral").as_uri()
    open_checkpoint(source)
    result = subprocess.run(
        [sys.executable, "-c", _SECOND_PROCESS, source], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    printed, imported = result.stdout.splitlines()
    assert json.loads(printed)["architecture"] == "MixtralForCausalLM"
    assert imported == "[]"


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


def test_a_checkpoint_that_changed_is_looked_at_again(copied, remembered, found_out):
    folder = copied()
    open_checkpoint(folder.as_uri())
    edit_config(folder, num_experts_per_tok=1)
    assert open_checkpoint(folder.as_uri()).experts_per_token == 1
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].bfloat16()}))
    open_checkpoint(folder.as_uri())
    assert len(found_out) == 3
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))
    for _ in range(2):
        with pytest.raises(CorruptCheckpoint, match=r"model\.norm\.weight"):
            open_checkpoint(folder.as_uri())
    assert len(found_out) == 5


def test_a_configuration_that_changes_meanwhile_is_not_remembered(copied, remembered, monkeypatch):
    folder = copied()
    find_out = checkpoint._find_out

    def change_and_find_out(*arguments):
        edit_config(folder, rms_norm_eps=1e-3)
        return find_out(*arguments)

    monkeypatch.setattr(checkpoint, "_find_out", change_and_find_out)
    open_checkpoint(folder.as_uri())
    assert not remembered.exists()


def test_the_key_covers_all_that_a_description_follows_from(monkeypatch):
    given = {"config": b"{}", "fingerprint": b"f", "dtype": "Auto", "environment": {}}
    changes = [
        {"config": b"{1}"},
        {"fingerprint": b"g"},
        {"dtype": "Float32"},
        {"environment": {architectures.ENV_UNLISTED: "try"}},
        {"config": b"{}f", "fingerprint": b""},
    ]
    keys = {description_key(**given | change) for change in [{}, *changes]}
    assert description_key(**given) == description_key(**given)
    monkeypatch.setattr(description.metadata, "version", lambda _: "0")
    keys.add(description_key(**given))
    monkeypatch.setattr(description, "_own_version", lambda: b"another")
    keys.add(description_key(**given))
    assert len(keys) == len(changes) + 3


def truncated(data, _):
    return data[:-10]


def flipped(data, _):
    return data[:200] + bytes([data[200] ^ 1]) + data[201:]


def emptied(*_):
    return b""


def anothers(_, other):
    return other


def of_another_shape(*_):
    body = b'{"key": "k"}'
    return description.hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, anothers, of_another_shape])
def test_a_damaged_entry_is_not_used(saved, remembered, found_out, damage):
    open_checkpoint(saved("olmoe").as_uri())
    (other,) = remembered.iterdir()
    expected = open_checkpoint(saved("mixtral").as_uri())
    (entry,) = set(remembered.iterdir()) - {other}
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole, other.read_bytes()))
    assert facts(open_checkpoint(saved("mixtral").as_uri())) == facts(expected)
    assert len(found_out) == 3
    assert entry.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_done_without(saved, remembered, found_out, caplog):
    remembered.write_text("a file")
    for _ in range(2):
        assert open_checkpoint(saved("mixtral").as_uri()).num_layers == 2
    assert len(found_out) == 2
    assert "cannot keep" in caplog.text


def test_nothing_is_kept_when_told_so(saved, monkeypatch, found_out, tmp_path):
    monkeypatch.setenv(names.ENV_CHECKPOINT_CACHE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    open_checkpoint(saved("mixtral").as_uri())
    assert list(tmp_path.iterdir()) == []


def test_where_descriptions_are_kept(tmp_path):
    assert cache_folder({names.ENV_CHECKPOINT_CACHE: str(tmp_path), "HOME": "/root"}) == tmp_path
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "flexpert" / "checkpoints"
    assert cache_folder({"HOME": str(tmp_path)}) == tmp_path / ".cache" / "flexpert" / "checkpoints"
    assert cache_folder({}) is None


@pytest.fixture
def some_description(saved, remembered):
    open_checkpoint(saved("mixtral").as_uri())
    (entry,) = remembered.iterdir()
    stored = DescriptionCache(remembered).load(entry.stem)
    assert stored is not None
    return stored


def test_writers_and_readers_do_not_disturb_each_other(tmp_path, some_description):
    cache = DescriptionCache(tmp_path / "shared")
    cache.store("key", some_description)
    read = []

    def write():
        for _ in range(50):
            cache.store("key", some_description)
            read.append(cache.load("key"))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [some_description] * 200
    assert [file.name for file in (tmp_path / "shared").iterdir()] == ["key.json"]


def test_the_folder_stays_small(tmp_path, some_description):
    cache = DescriptionCache(tmp_path / "many")
    for number in range(70):
        cache.store(f"key{number}", some_description)
    assert len(list((tmp_path / "many").iterdir())) == 64
    assert cache.load("key69") == some_description


def test_a_cast_page_of_a_remembered_checkpoint(saved, remembered):
    """The reader imports torch when it has to cast."""
    source = saved("mixtral").as_uri()
    first, second = open_checkpoint(source, "BFloat16"), open_checkpoint(source, "BFloat16")
    assert first.read_expert(1, 0) == second.read_expert(1, 0)
    assert all(view.dtype == torch.bfloat16 for view in second.layout.views(second.read_expert(1, 0)).values())
