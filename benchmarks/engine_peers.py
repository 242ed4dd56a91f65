"""One serving system in one process, for `bench_engine`: transformers' two ways, told by lines of JSON on stdin.

A line `{"prompts": [[ids…], …], "new_tokens": n}` is answered by `{"tokens": …, "seconds": …}`.
"""

import argparse
import json
import sys
import time
from typing import Any, Protocol

EXPERTS_IMPLEMENTATIONS = ("grouped_mm", "eager")
"""`batched_mm` gathers a copy of the weights for every token: 13 times slower here, so it is not tried."""
MOST_REQUESTS = 32


class Peer(Protocol):
    """A way of transformers to generate for several prompts."""

    attention: str

    def __init__(self, model: Any) -> None: ...

    def run(self, prompts: list[list[int]], new_tokens: int) -> int:
        """Generate greedily for all prompts and return the number of new tokens."""
        ...


class StaticBatch:
    """`generate` over one batch of prompts of equal length."""

    attention = "sdpa"

    def __init__(self, model: Any) -> None:
        self.model = model

    def run(self, prompts: list[list[int]], new_tokens: int) -> int:
        """Generate for all prompts at once and return the number of new tokens."""
        import torch

        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return int(out.shape[0] * (out.shape[1] - ids.shape[1]))


class ContinuousBatch:
    """`generate_batch`: transformers' continuous batching, its cache sized to what 32 requests need."""

    attention = "paged|sdpa"

    def __init__(self, model: Any) -> None:
        from transformers import ContinuousBatchingConfig

        self.model = model
        self.config = ContinuousBatchingConfig(page_size=32, num_blocks=8 * MOST_REQUESTS, max_batch_tokens=2048)

    def run(self, prompts: list[list[int]], new_tokens: int) -> int:
        """Generate for all prompts and return the number of new tokens."""
        from transformers import GenerationConfig

        generation = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        outputs = self.model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=self.config, progress_bar=False
        )
        return sum(len(output.generated_tokens) for output in outputs.values())


SYSTEMS: dict[str, type[Peer]] = {"generate_batch": ContinuousBatch, "generate": StaticBatch}


def fastest_experts(system: Peer, model: Any, prompts: list[list[int]]) -> dict[str, float]:
    """Seconds each experts implementation takes for a short run; the model is left at the fastest."""
    seconds = {}
    for name in EXPERTS_IMPLEMENTATIONS:
        model.set_experts_implementation(name)
        system.run(prompts, 2)
        started = time.perf_counter()
        system.run(prompts, 8)
        seconds[name] = time.perf_counter() - started
    model.set_experts_implementation(min(seconds, key=lambda name: seconds[name]))
    return seconds


def main() -> None:
    """Load the model, settle the experts implementation, then answer each line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", choices=sorted(SYSTEMS), required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    kind = SYSTEMS[options.system]
    model = AutoModelForCausalLM.from_pretrained(
        options.checkpoint, dtype=torch.bfloat16, attn_implementation=kind.attention
    ).eval()
    system = kind(model)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, model.config.vocab_size, (MOST_REQUESTS, 32), generator=generator).tolist()
    settings = fastest_experts(system, model, prompts)
    print(json.dumps({"ready": True, "experts_implementation_seconds": settings}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        started = time.perf_counter()
        tokens = system.run(job["prompts"], job["new_tokens"])
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()
