"""Writes what the walk found as a page for people: `docs/models.md`."""

from collections.abc import Iterable

import transformers

from flexpert_workers.checkpoint.architectures import Outcome

_HEAD = """# Which models are served

Every architecture of transformers {version} whose experts implement its experts interface
(`@use_experts_implementation`). *Served*: a tiny random-weight checkpoint of it, written by `save_pretrained`, was
served in fp32 by our engine through two expert workers, and its greedy text was that of transformers' `generate`,
token for token. Everything else is refused when it is applied, with the reason given here.

This page is written by `python -m flexpert_workers.checkpoint.walk`; a test fails when it is stale.

Whatever the architecture, a checkpoint is also refused when its configuration asks for layers other than full or
sliding attention, or when it has no layer of experts.

Where a checkpoint may be (a hub, an object store, a claim, a folder), and how it gets to the nodes:
[sources.md](sources.md).

Weights may be stored in BF16, F16 or F32, or quantised as DeepSeek-V3 publishes them (`quant_method` `fp8` with a
`weight_block_size`: E4M3 values with `…_scale_inv`) or as gpt-oss does (`mxfp4`: `…_blocks` and `…_scales`). Quantised
weights are dequantised to `model.dtype` (`Auto`: the configuration's own, BF16 where it names none), an expert's while
its page is filled and dense ones while the engine loads them: what is served is the dequantised model. Other quantised
formats are refused by name.

{num_served} served, {num_refused} refused.

| architecture | module | |
|---|---|---|
"""


def models_page(outcomes: Iterable[Outcome]) -> str:
    """The page as Markdown: what is served first, each part by name."""
    ordered = sorted(outcomes, key=lambda outcome: (not outcome.is_served, outcome.architecture))
    num_served = sum(outcome.is_served for outcome in ordered)
    head = _HEAD.format(version=transformers.__version__, num_served=num_served, num_refused=len(ordered) - num_served)
    return head + "".join(_row(outcome) for outcome in ordered)


def _row(outcome: Outcome) -> str:
    verdict = "served" if outcome.is_served else f"refused: {outcome.reason}"
    return f"| `{outcome.architecture}` | {outcome.module} | {verdict} |\n"
