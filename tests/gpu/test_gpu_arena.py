"""Pages of a GPU under computation, and in several processes."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import memory_pages
import pytest
import torch

from flexpert_workers.memory.backend import page_checksum

pytestmark = pytest.mark.gpu
HIDDEN, WIDTH = 256, 512
NBYTES = 3 * HIDDEN * WIDTH * 4


def expert_page(backend, seed):
    """A sealed page of a gated MLP in float32: gate, up and down, one behind the other; and its weights on the host."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, HIDDEN, WIDTH, generator=generator) / 16
    page = backend.create(NBYTES)
    page.fill(lambda target: target.__setitem__(slice(None), weights.numpy().tobytes()))
    return page.seal(), weights


def compute(weights, tokens):
    gate, up, down = weights
    return (torch.nn.functional.silu(tokens @ gate) * (tokens @ up)) @ down.T


def weights_in(arena, slot):
    return arena.tensor(slot)[:NBYTES].view(torch.float32).view(3, HIDDEN, WIDTH)


@contextmanager
def borrower(page):
    """Another process that has adopted and mapped the page; yields (process, what it saw)."""
    descriptor = os.dup(page.descriptor())
    script = Path(__file__).parent / "gpu_borrower.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(descriptor), str(page.nbytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[descriptor],
    )
    os.close(descriptor)
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_an_expert_in_a_slot_computes_what_it_computes_on_the_host(backend, device):
    arena = backend.reserve(2, NBYTES)
    tokens = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        page, weights = expert_page(backend, seed)
        arena.map(1, page)
        output = compute(weights_in(arena, 1), tokens.to(device)).cpu()
        torch.testing.assert_close(output, compute(weights, tokens), rtol=1e-4, atol=1e-4)
        arena.unmap(1)
        page.close()
    arena.close()


def test_slots_are_remapped_beside_a_running_kernel(backend, device):
    arena = backend.reserve(3, NBYTES)
    pages = [expert_page(backend, seed) for seed in range(4)]
    for slot in range(3):
        arena.map(slot, pages[slot][0])
    tokens = torch.randn(512, HIDDEN, generator=torch.Generator().manual_seed(1)).to(device)
    expected = compute(weights_in(arena, 1), tokens)
    outputs = []
    for turn in range(50):
        outputs.extend(compute(weights_in(arena, 1), tokens) for _ in range(20))  # on their way while slots change
        for slot in (0, 2):
            arena.unmap(slot)
            arena.map(slot, pages[(turn + slot) % 4][0])
    assert all(torch.equal(output, expected) for output in outputs)
    for slot in (0, 2):
        assert torch.equal(weights_in(arena, slot).cpu(), pages[(49 + slot) % 4][1])
    for slot in range(3):
        arena.unmap(slot)
    arena.close()
    for page, _ in pages:
        page.close()


def test_another_process_attaches_and_nothing_is_copied(backend):
    page, data = memory_pages.page_of(backend, 7, NBYTES)
    with borrower(page) as (_, seen):
        assert seen == {"checksum": page_checksum(data), "identity": list(page.identity())}
    page.close()


def test_a_page_outlives_the_process_that_computed_from_it(backend):
    page, data = memory_pages.page_of(backend, 8, NBYTES)
    with borrower(page) as (process, first):
        process.kill()
        process.wait()
        with borrower(page) as (_, second):
            assert first == second == {"checksum": page_checksum(data), "identity": list(page.identity())}
    assert bytes(page.view()) == data
    page.close()


def test_cycles_leave_no_memory_behind(backend):
    def cycle(seed):
        page, _ = memory_pages.page_of(backend, seed, NBYTES)
        borrowed = backend.adopt(os.dup(page.descriptor()), NBYTES)
        arena = backend.reserve(2, NBYTES)
        arena.map_all({0: page, 1: borrowed})
        arena.close()
        borrowed.close()
        page.close()

    cycle(0)
    free, descriptors = torch.cuda.mem_get_info()[0], memory_pages.num_descriptors()
    for seed in range(200):
        cycle(seed)
    assert memory_pages.num_descriptors() == descriptors
    assert free - torch.cuda.mem_get_info()[0] < 20 * backend.footprint(NBYTES)  # others may use the device too
