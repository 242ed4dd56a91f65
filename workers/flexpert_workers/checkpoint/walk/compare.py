"""Greedy fp32 text of a checkpoint, by transformers' `generate` and by our engine through expert workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from flexpert_workers.checkpoint.checkpoint import Checkpoint, open_checkpoint
from flexpert_workers.checkpoint.skeleton import model_class
from flexpert_workers.checkpoint.walk.pool import Start, dispatch_pool, thread_worker
from flexpert_workers.checkpoint.walk.tiny import VOCABULARY
from flexpert_workers.engine import Engine, EngineConfig
from flexpert_workers.messages.generation import Sampling, Submit, TokenOutput

NEAR_TIE = 1e-4
"""Two logits closer than this may swap places by rounding alone; such a difference is counted, not held against us."""

_PROMPT_TOKENS = (5, 13, 21)
_NEW_TOKENS = 12


@dataclass(frozen=True)
class Comparison:
    """How our text compares with the reference's.

    Attributes:
        num_tokens: Tokens of the reference.
        num_different: Prompts whose text differs.
        near_ties: Those of them whose first differing token had a rival closer than `NEAR_TIE` in the reference.
    """

    num_tokens: int
    num_different: int
    near_ties: int

    @property
    def is_identical(self) -> bool:
        """Whether no difference counts."""
        return self.num_different == self.near_ties


@dataclass(frozen=True)
class ReferenceText:
    """Tokens of one prompt by `generate`, and how far the best logit lay above the second, token by token."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


def compare(
    source: str, num_workers: int = 2, start: Start = thread_worker, reference: str | None = None
) -> Comparison:
    """Serve a checkpoint in fp32 and compare its text with `generate`'s, for prompts that share their passes.

    Args:
        source: The checkpoint.
        num_workers: Expert workers to serve it through.
        start: How each of them is started.
        reference: The checkpoint for `generate`, where it is another: the same model, dequantised.

    Raises:
        CheckpointError: It cannot be served.
    """
    checkpoint = open_checkpoint(source, "Float32")
    prompts = make_prompts()
    theirs = reference_texts(open_checkpoint(reference or source, "Float32"), prompts)
    ours = serve_texts(checkpoint, prompts, num_workers, start)
    differing = [_first_difference(text, tokens) for text, tokens in zip(theirs, ours, strict=True)]
    margins = [text.margins[position] for text, position in zip(theirs, differing, strict=True) if position is not None]
    num_tokens = sum(len(text.tokens) for text in theirs)
    return Comparison(num_tokens, len(margins), sum(margin < NEAR_TIE for margin in margins))


def make_prompts() -> list[tuple[int, ...]]:
    """The prompts of the walk: of different lengths, some longer than the sliding window."""
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(0, VOCABULARY, (size,), generator=generator).tolist()) for size in _PROMPT_TOKENS]


def reference_texts(checkpoint: Checkpoint, prompts: Sequence[tuple[int, ...]]) -> list[ReferenceText]:
    """Greedy text of each prompt, alone, by the model's own `generate`."""
    model = model_class(checkpoint.architecture).from_pretrained(checkpoint.path, dtype=torch.float32).eval()
    greedy = GenerationConfig(
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return [_reference_text(model, prompt, greedy) for prompt in prompts]


def serve_texts(
    checkpoint: Checkpoint, prompts: Sequence[tuple[int, ...]], num_workers: int, start: Start
) -> list[tuple[int, ...]]:
    """Greedy text of all prompts together, by our engine; passes are short, so prompts are prefilled in chunks."""
    config = EngineConfig(
        engine="walk", pool="walk", source="", max_batch_tokens=16, block_tokens=4, kv_cache_bytes=1 << 20
    )
    texts: list[list[int]] = [[] for _ in prompts]
    with dispatch_pool(checkpoint, "Float32", num_workers, start) as client:
        engine = Engine(checkpoint, config, client)
        for number, prompt in enumerate(prompts):
            engine.add_request(Submit(number, prompt, (), Sampling(max_tokens=_NEW_TOKENS, temperature=0.0)))
        while engine.has_work:
            for reply in engine.step().get(b"", []):
                if not isinstance(reply, TokenOutput):
                    raise RuntimeError(f"a request failed: {reply}")
                texts[reply.request] += reply.token_ids
    return [tuple(text) for text in texts]


def _reference_text(model: Any, prompt: tuple[int, ...], greedy: GenerationConfig) -> ReferenceText:
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
    best = torch.stack(output.logits).float().topk(2).values[:, 0]
    return ReferenceText(tuple(output.sequences[0, len(prompt) :].tolist()), tuple((best[:, 0] - best[:, 1]).tolist()))


def _first_difference(reference: ReferenceText, tokens: tuple[int, ...]) -> int | None:
    for position, (theirs, ours) in enumerate(zip(reference.tokens, tokens, strict=True)):
        if theirs != ours:
            return position
    return None
