"""The KV cache's default comes from the model and the cgroup, and the cache's budget covers its workspace."""

import pytest
import torch

from flexpert_workers.engine import EngineConfig
from flexpert_workers.engine.cache import LayerShape, bytes_per_token, plan_cache
from flexpert_workers.engine.memory import (
    DEFAULT_WITHOUT_LIMIT,
    RESERVED_BYTES,
    cgroup_memory_limit,
    derive_kv_bytes,
)
from flexpert_workers.errors import CapacityError

GIB = 1 << 30


def derive(**changes):
    arguments = {
        "limit_bytes": 8 * GIB,
        "dense_bytes": GIB,
        "pass_bytes": GIB // 2,
        "bytes_per_token": 100_000,
        "useful_tokens": 10**9,
    }
    return derive_kv_bytes(**{**arguments, **changes})


def test_half_of_what_the_model_leaves_of_the_limit():
    assert derive() == (8 * GIB - GIB - GIB // 2 - RESERVED_BYTES) // 2


def test_never_more_than_the_requests_can_use():
    assert derive(useful_tokens=1000) == 100_000_000


def test_fixed_default_without_a_limit():
    assert derive(limit_bytes=None) == DEFAULT_WITHOUT_LIMIT


def test_a_model_that_leaves_no_room_is_refused():
    with pytest.raises(CapacityError, match="maxBatchTokens"):
        derive(dense_bytes=7 * GIB)


@pytest.fixture
def cgroups(tmp_path):
    """Writes a cgroup file system and a membership file; returns the limit read from them."""

    def read(files, membership):
        root = tmp_path / "cgroup"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        own = tmp_path / "membership"
        own.write_text(membership)
        return cgroup_memory_limit(root, own)

    return read


def test_version_2_takes_the_lowest_limit_on_the_path(cgroups):
    files = {
        "memory.max": "max\n",
        "kubepods/memory.max": "9000000000\n",
        "kubepods/pod/memory.max": "4000000000\n",
        "kubepods/pod/box/memory.max": "max\n",
        "other/memory.max": "1000\n",
    }
    assert cgroups(files, "0::/kubepods/pod/box\n") == 4_000_000_000


def test_version_2_inside_a_container_reads_the_root(cgroups):
    assert cgroups({"memory.max": "2000000000\n"}, "0::/../../somewhere/else\n") == 2_000_000_000


def test_version_1_has_a_folder_a_controller(cgroups):
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/docker/box/memory.limit_in_bytes": "3000000000\n",
        "cpu/docker/box/memory.limit_in_bytes": "1000\n",
    }
    membership = "9:name=systemd:/\n4:memory:/docker/box\n1:cpu:/docker/box\n0::/\n"
    assert cgroups(files, membership) == 3_000_000_000


def test_no_limit_anywhere(cgroups):
    files = {"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory.max": "max\n"}
    assert cgroups(files, "0::/\n") is None
    assert cgroups({}, "") is None


SHAPES = {layer: LayerShape((2, 64), (2, 32), torch.bfloat16, 8) for layer in range(4)}
LATENT = {layer: LayerShape((1, 512), (1, 64), torch.bfloat16, 8, expanded_bytes=80_000) for layer in range(4)}


@pytest.mark.parametrize("shapes", [SHAPES, LATENT], ids=["heads", "latent"])
@pytest.mark.parametrize("budget", [16 << 20, 64 << 20, 4 << 30])
@pytest.mark.parametrize("context_length", [512, 32768])
def test_budget_covers_cache_and_workspace(shapes, budget, context_length):
    plan = plan_cache(shapes, budget, 16, context_length)
    gathered = max(shape.gathered_bytes for shape in shapes.values())
    longest = min(context_length, plan.num_blocks * 16)
    assert plan.gather_tokens >= longest
    used = plan.num_blocks * 16 * bytes_per_token(shapes) + plan.gather_tokens * gathered
    assert used <= budget
    assert used > 0.5 * budget or plan.num_blocks < 4


@pytest.mark.parametrize("name", ["max_batch_tokens", "max_running", "max_waiting", "block_tokens"])
def test_numbers_with_which_nothing_could_run_are_refused(name):
    with pytest.raises(ValueError, match=name):
        EngineConfig("engine", "pool", "file:///model", **{name: 0})
