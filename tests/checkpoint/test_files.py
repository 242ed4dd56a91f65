"""Broken files are named, with the tensor; nothing but safetensors is opened."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.checkpoint.files import INDEX_FILE, SINGLE_FILE, open_files
from flexpert_workers.errors import CheckpointNotFound, CorruptCheckpoint


def rewrite_header(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    change(entries)
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


@pytest.fixture
def two_tensors(tmp_path):
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, tmp_path / SINGLE_FILE)
    return tmp_path


def test_headers_agree_with_the_library(saved):
    folder = saved("deepseek_v3")
    files = open_files(folder)
    expected = load_file(folder / SINGLE_FILE)
    assert files.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        stored = files.tensors[name]
        assert stored.shape == tuple(tensor.shape)
        assert bytes(files.read(stored, 0, stored.nbytes)) == tensor.numpy().tobytes()


def test_ranges_are_read(two_tensors):
    files = open_files(two_tensors)
    data = files.read(files.tensors["a"], 4, 8)
    assert torch.frombuffer(data, dtype=torch.float32).tolist() == [1.0, 2.0]


def test_a_truncated_file_is_named_with_its_tensor(copied):
    folder = copied()
    path = folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    last = max(open_files_leniently(path), key=lambda entry: entry[1])[0]
    with pytest.raises(CorruptCheckpoint) as caught:
        open_checkpoint(folder.as_uri())
    assert str(path) in str(caught.value)
    assert repr(last) in str(caught.value)


def open_files_leniently(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    return [(name, entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]


def test_a_file_truncated_after_opening_is_named_with_its_tensor(copied):
    folder = copied("mixtral", original=False)
    checkpoint = open_checkpoint(folder.as_uri())
    path = folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[: checkpoint.files.shards[0].data_start])
    with pytest.raises(CorruptCheckpoint, match=r"model\.safetensors is truncated: tensor '.*experts.*'"):
        checkpoint.read_expert(0, 0)


def test_a_file_removed_after_opening_is_named(copied):
    folder = copied()
    checkpoint = open_checkpoint(folder.as_uri())
    (folder / SINGLE_FILE).unlink()
    with pytest.raises(CheckpointNotFound, match=r"model\.safetensors is missing"):
        checkpoint.read_expert(0, 0)


def misplace(entries):
    entries["b"]["data_offsets"] = [20, 36]


def leave_hole(entries):
    del entries["a"]


def grow(entries):
    entries["a"]["shape"] = [2, 4]


def unknown_dtype(entries):
    entries["b"]["dtype"] = "Q3"


def no_offsets(entries):
    del entries["b"]["data_offsets"]


def negative(entries):
    entries["b"]["shape"] = [-4]


def surplus(entries):
    del entries["b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (misplace, "tensor 'b' overlaps"),
        (leave_hole, "tensor 'b' leaves a hole"),
        (grow, "tensor 'a' of shape"),
        (unknown_dtype, "tensor 'b' has dtype 'Q3'"),
        (no_offsets, "tensor 'b' has a malformed header entry"),
        (negative, "tensor 'b' has a malformed header entry"),
        (surplus, "16 bytes behind its last tensor"),
    ],
)
def test_contradicting_headers_are_refused(two_tensors, change, message):
    rewrite_header(two_tensors / SINGLE_FILE, change)
    with pytest.raises(CorruptCheckpoint, match=message) as caught:
        open_files(two_tensors)
    assert SINGLE_FILE in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00", "not a safetensors file"),
        ((100).to_bytes(8, "little") + b"{}", "truncated inside its header"),
        ((2).to_bytes(8, "little") + b"[]", "header is not a JSON object"),
        ((2).to_bytes(8, "little") + b"{x", "header is not valid JSON"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match=message):
        open_files(tmp_path)


def test_pickled_weights_are_never_opened(copied):
    folder = copied()
    (folder / SINGLE_FILE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(CheckpointNotFound, match=r"pytorch_model\.bin but no safetensors.*save_pretrained"):
        open_checkpoint(folder.as_uri())


def test_an_empty_folder_is_not_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointNotFound, match=SINGLE_FILE):
        open_files(tmp_path)


def write_sharded(folder, weight_map):
    save_file({"a": torch.ones(2)}, folder / "one.safetensors")
    save_file({"b": torch.ones(2)}, folder / "two.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_is_followed(tmp_path):
    write_sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    files = open_files(tmp_path)
    assert [shard.name for shard in files.shards] == ["one.safetensors", "two.safetensors"]
    assert files.tensors["b"].file == "two.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "error", "message"),
    [
        ({"a": "one.safetensors", "c": "two.safetensors"}, CorruptCheckpoint, "two.safetensors lacks tensor 'c'"),
        ({"a": "three.safetensors"}, CheckpointNotFound, "three.safetensors is missing"),
        ({"a": "../one.safetensors"}, CorruptCheckpoint, "no file name"),
        ({"a": ["one.safetensors"]}, CorruptCheckpoint, "no file name"),
        ({}, CorruptCheckpoint, "no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, weight_map, error, message):
    write_sharded(tmp_path, weight_map)
    with pytest.raises(error, match=message):
        open_files(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    write_sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "two.safetensors")
    with pytest.raises(CorruptCheckpoint, match=r"'a' is both in one\.safetensors and in two\.safetensors"):
        open_files(tmp_path)
