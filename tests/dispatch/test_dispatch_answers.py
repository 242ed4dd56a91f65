"""Dispatched experts compute what the architecture's own experts forward computes."""

import pytest
import torch


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_dispatch_equals_the_architecture(make_pool, harness, kind, num_workers):
    pool = make_pool(kind, num_workers)
    for number in range(num_workers):
        owned = [key for key in harness.all_experts() if key[1] % num_workers == number]
        pool.prepare(number, owned)
    pool.tables.publish(pool.table(lambda _, index: ((index % num_workers, 1.0),)))
    for rows in (1, 7, 40):
        for layer in (0, 1):
            routed = harness.routed(rows, 8, 2, seed=rows)
            answer = pool.client.dispatch(layer, *routed)
            torch.testing.assert_close(answer, pool.model.reference(layer, *routed), atol=1e-5, rtol=1e-5)
