"""Train the tiny mixture-of-experts language model of the examples, and report on it.

    python examples/train_tiny_moe.py --out build/stage-1       # from scratch
    python examples/train_tiny_moe.py --continue-from build/stage-1 --steps 140 --learning-rate 0.001 --seed 8
        --split-spaces 0.1      # (one line with the above) writes examples/models/tiny-moe
    python examples/train_tiny_moe.py --report                  # loss, expert loads, completions of what is there

The text is the standard library of the Python that runs it, so nothing is downloaded. The weights are trained in
fp32, averaged over the last steps, and stored in bf16 in the Hugging Face layout of `Qwen3MoeForCausalLM`.
"""

import argparse
import hashlib
import math
import platform
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

END = "<|endoftext|>"
PROMPTS = ("def ", "import os", "class ", "for i in range(", "if __name__ == ")
SKIPPED_FOLDERS = {
    "__pycache__", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests",
    "turtledemo",
}  # fmt: skip
HELD_OUT_PERCENT = 4


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are those of the first stage."""

    steps: int = 1400
    batch: int = 16
    sequence: int = 256
    learning_rate: float = 4e-3
    warm_up: int = 60
    weight_decay: float = 0.05
    average: float = 0.985
    split_spaces: float = 0.0
    seed: int = 7

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to 3 % of the peak."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.learning_rate * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))


def library_files() -> list[tuple[str, str]]:
    """(path under the library, text) of each Python source of the standard library, in the order of the paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts) and not any(
            part.startswith("config-") for part in relative.parts
        ):
            files.append((relative.as_posix(), path.read_text(encoding="utf-8", errors="replace")))
    return files


def is_held_out(name: str) -> bool:
    """Whether the file is kept from training: decided by its name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer, so that any text can be encoded, learned from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_files(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts as one row of token ids, each file followed by the end-of-text token."""
    end = tokenizer.token_to_id(END)
    ids = [token for encoding in tokenizer.encode_batch(texts) for token in [*encoding.ids, end]]
    return torch.tensor(ids, dtype=torch.long)


def split_spaces(ids: Tensor, tokenizer: Tokenizer, fraction: float, seed: int) -> Tensor:
    """Write a part of the tokens that begin with a space as two, so that a prompt may end with a space."""
    vocabulary = tokenizer.get_vocab()
    space = tokenizer.encode(" ").ids[0]
    mark = tokenizer.id_to_token(space)
    rest = torch.full((len(vocabulary),), -1)
    for token, id_ in vocabulary.items():
        if token.startswith(mark) and token[1:] in vocabulary:
            rest[id_] = vocabulary[token[1:]]
    chosen = torch.rand(len(ids), generator=torch.Generator().manual_seed(seed)) < fraction
    chosen &= rest[ids] >= 0
    pairs = torch.stack([torch.where(chosen, space, -1), torch.where(chosen, rest[ids], ids)], dim=1).flatten()
    return pairs[pairs >= 0]


def make_model(vocabulary: int, end: int, experts_implementation: str) -> Qwen3MoeForCausalLM:
    """The model to train: 4 layers of 16 experts, 2 per token, 3.6 M parameters, 0.8 M of them active."""
    config = Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        moe_intermediate_size=128,
        num_experts=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        router_aux_loss_coef=0.004,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        experts_implementation=experts_implementation,
    )
    return Qwen3MoeForCausalLM(config).float()


def from_scratch(texts: list[str]) -> tuple[Tokenizer, Qwen3MoeForCausalLM]:
    """A tokenizer learned from `texts`, and a model with random weights."""
    tokenizer = train_tokenizer(texts, vocabulary=2048)
    return tokenizer, make_model(tokenizer.get_vocab_size(), tokenizer.token_to_id(END), "grouped_mm")


def from_folder(folder: Path) -> tuple[Tokenizer, Qwen3MoeForCausalLM]:
    """The tokenizer and the weights, in fp32, of an exported model."""
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="grouped_mm")
    return Tokenizer.from_file(str(folder / "tokenizer.json")), model


def batches(ids: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """Endless batches [batch, sequence + 1]; each pass over the text cuts it at another offset, in another order."""
    generator = torch.Generator().manual_seed(recipe.seed)
    width = recipe.sequence + 1
    while True:
        offset = int(torch.randint(recipe.sequence, (), generator=generator))
        starts = torch.arange(offset, len(ids) - width, recipe.sequence)
        starts = starts[torch.randperm(len(starts), generator=generator)]
        for chunk in starts.split(recipe.batch):
            if len(chunk) == recipe.batch:
                yield torch.stack([ids[start : start + width] for start in chunk.tolist()])


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; norms and the embedding do not."""
    matrices = [p for name, p in model.named_parameters() if p.dim() >= 2 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() < 2 or "embed_tokens" in name]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def balance_term(router_logits: tuple[Tensor, ...], num_experts: int, top_k: int) -> Tensor:
    """Switch Transformer's load-balancing term (arXiv 2101.03961, eq. 4), averaged over layers; 1 is balanced.

    Args:
        router_logits: Of each layer, [tokens, experts].
        num_experts: Experts of a layer.
        top_k: Experts of a token.
    """
    terms = []
    for logits in router_logits:
        probabilities = logits.softmax(dim=-1)
        chosen = nn.functional.one_hot(logits.topk(top_k, dim=-1).indices, num_experts).sum(1).float()
        terms.append(num_experts / top_k * (chosen.mean(0) * probabilities.mean(0)).sum())
    return torch.stack(terms).mean()


def train_step(model: Qwen3MoeForCausalLM, optimizer: torch.optim.Optimizer, batch: Tensor, rate: float) -> float:
    """One step of AdamW; returns the loss in nats per token, without the router's balancing term."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    config = model.config
    output = model(input_ids=batch[:, :-1], output_router_logits=True, use_cache=False)
    loss = nn.functional.cross_entropy(output.logits.flatten(0, 1), batch[:, 1:].flatten())
    balance = balance_term(output.router_logits, config.num_experts, config.num_experts_per_tok)
    (loss + config.router_aux_loss_coef * balance).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


class Average:
    """Running average of a model's weights: smoother than the last step, and usable before the rate has fallen."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._num_updates = 0
        self._weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step; the first ones count for more, so that the start is forgotten soon."""
        self._num_updates += 1
        decay = min(self._decay, self._num_updates / (10 + self._num_updates))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                self._weights[name].lerp_(parameter, 1 - decay)

    def copy_into(self, model: nn.Module) -> None:
        """Give `model` the averaged weights."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self._weights[name])


def export(model: Qwen3MoeForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model in bf16 and its tokenizer in the Hugging Face layout."""
    stored = Qwen3MoeForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored.to(torch.bfloat16)
    stored.generation_config.do_sample = False
    stored.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=1024
    ).save_pretrained(folder)


def train(recipe: Recipe, out: Path, start: Path | None, export_every_s: float) -> None:
    """Train from scratch or from the model in `start`; export every `export_every_s` seconds, and at the end."""
    files = library_files()
    texts = [text for name, text in files if not is_held_out(name)]
    torch.manual_seed(recipe.seed)
    tokenizer, model = from_scratch(texts) if start is None else from_folder(start)
    ids = split_spaces(encode_files(tokenizer, texts), tokenizer, recipe.split_spaces, recipe.seed)
    print(f"{len(texts)} files, {len(ids)} tokens; {recipe}", flush=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), betas=(0.9, 0.95), fused=True)
    average = Average(model, recipe.average)
    exported = Qwen3MoeForCausalLM(model.config)
    started = last_export = time.monotonic()
    for step, batch in zip(range(recipe.steps), batches(ids, recipe), strict=False):
        loss = train_step(model, optimizer, batch, recipe.learning_rate_at(step))
        average.update(model)
        now = time.monotonic()
        if step % 10 == 0:
            print(f"step {step} loss {loss:.3f} {now - started:.0f} s", flush=True)
        if now - last_export > export_every_s or step == recipe.steps - 1:
            average.copy_into(exported)
            export(exported, tokenizer, out)
            write_card(out, recipe, step + 1)
            last_export = now


@dataclass(frozen=True)
class Report:
    """What a model does on the held-out files.

    Attributes:
        loss: Nats per token.
        bytes_per_token: Of the held-out text.
        loads: [layers, experts] tokens routed to each expert.
        completions: Prompt → its greedy continuation.
    """

    num_tokens: int
    loss: float
    bytes_per_token: float
    loads: tuple[tuple[int, ...], ...]
    completions: dict[str, str]

    def skew(self) -> list[float]:
        """Of each layer, the busiest expert's load over the mean."""
        return [max(row) * len(row) / sum(row) for row in self.loads]


@torch.no_grad()
def report_on(folder: Path, max_tokens: int = 65536, window: int = 256) -> Report:
    """Measure the exported model in fp32 on the files it was not trained on."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="grouped_mm")
    texts = [text for name, text in library_files() if is_held_out(name)]
    ids = encode_files(tokenizer, texts)
    bytes_per_token = sum(len(text.encode()) for text in texts) / len(ids)
    ids = ids[: min(max_tokens, len(ids) - 1) // window * window + 1]
    config = model.config
    loads = torch.zeros(config.num_hidden_layers, config.num_experts, dtype=torch.long)
    total = 0.0
    for start in range(0, len(ids) - 1, 8 * window):
        chunk = ids[start : start + 8 * window + 1]
        output = model(input_ids=chunk[:-1].view(-1, window), output_router_logits=True, use_cache=False)
        total += float(nn.functional.cross_entropy(output.logits.flatten(0, 1), chunk[1:], reduction="sum"))
        for layer, logits in enumerate(output.router_logits):
            chosen = logits.topk(config.num_experts_per_tok, dim=-1).indices.flatten()
            loads[layer] += torch.bincount(chosen, minlength=config.num_experts)
    completions = {prompt: complete(model, tokenizer, prompt) for prompt in PROMPTS}
    num_tokens = len(ids) - 1
    return Report(num_tokens, total / num_tokens, bytes_per_token, tuple(map(tuple, loads.tolist())), completions)


def complete(model: Qwen3MoeForCausalLM, tokenizer: Tokenizer, prompt: str, max_tokens: int = 64) -> str:
    """The greedy continuation of `prompt`."""
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    output = model.generate(ids, max_new_tokens=max_tokens, do_sample=False)
    return str(tokenizer.decode(output[0, ids.shape[1] :].tolist()))


def corpus_digest() -> str:
    """SHA-256 over the names and texts of the corpus, to tell whether another machine trains on the same."""
    digest = hashlib.sha256()
    for name, text in library_files():
        digest.update(name.encode() + b"\0" + text.encode() + b"\0")
    return digest.hexdigest()


def describe(report: Report) -> str:
    """The report as Markdown."""
    skew = " ".join(f"{value:.2f}" for value in report.skew())
    bits = report.loss / math.log(2) / report.bytes_per_token
    loads = "\n".join(f"| {layer} | {' | '.join(map(str, row))} |" for layer, row in enumerate(report.loads))
    num_experts = len(report.loads[0])
    shown = "\n\n".join(f"`{prompt}`\n\n```text\n{prompt}{text}\n```" for prompt, text in report.completions.items())
    return f"""\
## Measured on held-out files

- {report.num_tokens} tokens, {report.loss:.3f} nats per token, {bits:.3f} bits per byte
- expert load, busiest over mean, by layer: {skew}

| layer | {" | ".join(map(str, range(num_experts)))} |
|{"---|" * (num_experts + 1)}
{loads}

## Greedy completions

{shown}
"""


def write_card(folder: Path, recipe: Recipe, num_steps: int) -> None:
    """Write the model card, with what the exported weights do."""
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md") / 1e6
    head = f"""\
# tiny-moe

A mixture-of-experts language model of 3.6 M parameters (`Qwen3MoeForCausalLM`, 4 MoE layers of 16 experts, 2 per
token, byte-level BPE of 2048) that completes text like Python. It exists to try Flexpert on a real, trained router.

Made by `examples/train_tiny_moe.py` (its docstring has the commands) from the sources of the standard library of
Python {platform.python_version()} (corpus SHA-256 `{corpus_digest()[:16]}…`), in fp32 on one CPU thread, and stored in
bf16: {size:.1f} MB. The last stage was {num_steps} of {recipe.steps} steps of {recipe.batch} × {recipe.sequence}
tokens, peak learning rate {recipe.learning_rate:g}, seed {recipe.seed}, with {recipe.split_spaces:.0%} of the leading
spaces split off their tokens.

In training each file ended in `{END}`. {HELD_OUT_PERCENT} % of the files, chosen by a hash of their names, were kept
for the numbers below. The text it learned from is under the PSF licence.

"""
    (folder / "README.md").write_text(head + describe(report_on(folder)))


def main() -> None:
    """Parse the command line; train, or report on what is there."""
    default = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "models" / "tiny-moe")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--split-spaces", type=float, default=default.split_spaces, metavar="FRACTION")
    parser.add_argument("--continue-from", type=Path, default=None, metavar="FOLDER", help="an exported model")
    parser.add_argument("--export-every", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--report", action="store_true", help="do not train; measure what is in --out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.report:
        print(describe(report_on(arguments.out)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        steps=arguments.steps,
        warm_up=min(default.warm_up, arguments.steps // 10),
        learning_rate=arguments.learning_rate,
        split_spaces=arguments.split_spaces,
        seed=arguments.seed,
    )
    train(recipe, arguments.out, arguments.continue_from, arguments.export_every)


if __name__ == "__main__":
    main()
