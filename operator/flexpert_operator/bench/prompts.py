"""What requests ask: drawn with lengths like those of conversations, or read from a file. Lengths are in tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHAREGPT_PROMPT, SHAREGPT_ANSWER = (161.31, 1.4), (337.99, 0.9)
"""(Mean tokens of ShareGPT's prompts and answers by Kwon et al., *PagedAttention*, SOSP 2023; σ of the logarithm.)"""

LEAST, MOST_PROMPT, MOST = 4, 1024, 2048
"""As vLLM keeps of ShareGPT: tokens of a prompt or an answer at least, of a prompt and of both together at most."""

_TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were her all she there would their we him been has when who will more no if out so said what up its about "
    "into than them can only other new some could time these two may then do first any my now such like our over man"
)


class InvalidDataset(ValueError):
    """A file has no requests that can be used; the message says what is wrong with it."""


@dataclass(frozen=True)
class Ask:
    """A request: a text, of about how many tokens where that is known, and how many are to be generated."""

    prompt: str
    max_tokens: int
    prompt_tokens: int = 0


def sharegpt_like(number: int, words_per_token: float, rng: np.random.Generator) -> list[Ask]:
    """Drawn texts with lengths distributed as in ShareGPT."""
    prompts = np.clip(_lognormal(*SHAREGPT_PROMPT, number, rng), LEAST, MOST_PROMPT)
    answers = np.clip(_lognormal(*SHAREGPT_ANSWER, number, rng), LEAST, MOST - prompts)
    return [
        drawn(int(prompt), int(answer), words_per_token, rng) for prompt, answer in zip(prompts, answers, strict=True)
    ]


def of_length(
    number: int, prompt: int, answer: int, spread: float, words_per_token: float, rng: np.random.Generator
) -> list[Ask]:
    """Drawn texts of `prompt` and `answer` tokens, each by up to `spread` (a part of it) more or less."""
    factors = rng.uniform(1 - spread, 1 + spread, (number, 2))
    return [
        drawn(max(1, round(prompt * one)), max(1, round(answer * other)), words_per_token, rng)
        for one, other in factors
    ]


def drawn(prompt: int, answer: int, words_per_token: float, rng: np.random.Generator) -> Ask:
    """A text of words at random."""
    words = rng.choice(_TEXT.split(), max(1, round(prompt * words_per_token)))
    return Ask(" ".join(words), answer, prompt)


def read(path: Path, number: int, answer: int | None, rng: np.random.Generator) -> list[Ask]:
    """Requests of a file: ShareGPT's JSON, or JSON lines with `prompt` and maybe `output_tokens`.

    Args:
        path: The file.
        number: Requests; a file with fewer is gone through again.
        answer: Tokens to generate for each; None: as the file says.
        rng: Draws which, and in what order.

    Raises:
        InvalidDataset: The file cannot be read, or has none that can be used.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDataset(f"{path}: {error}") from error
    found = [ask for ask in (_ask_of(entry, answer) for entry in _entries(path, text)) if ask is not None]
    if not found:
        raise InvalidDataset(
            f"{path}: no request in it. Write JSON lines like "
            '{"prompt": "…", "output_tokens": 64}, or give ShareGPT\'s JSON'
        )
    order = [position for _ in range(-(-number // len(found))) for position in rng.permutation(len(found))]
    return [found[position] for position in order[:number]]


def _entries(path: Path, text: str) -> Sequence[Any]:
    try:
        if text.lstrip().startswith("["):
            entries: Sequence[Any] = json.loads(text)
            return entries
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise InvalidDataset(f"{path}: it is neither a JSON list nor JSON lines: {error}") from error


def _ask_of(entry: Any, answer: int | None) -> Ask | None:
    """A request; None where the entry is none."""
    if not isinstance(entry, Mapping):
        return None
    if isinstance(turns := entry.get("conversations"), list):
        said = [str(turn["value"]) for turn in turns[:2] if isinstance(turn, Mapping) and turn.get("value")]
        return Ask(said[0], answer or max(LEAST, len(said[1].split()) * 4 // 3)) if len(said) == 2 else None
    prompt, tokens = entry.get("prompt"), answer or entry.get("output_tokens") or entry.get("max_tokens") or 256
    return Ask(prompt, int(tokens)) if isinstance(prompt, str) and prompt and isinstance(tokens, int) else None


def _lognormal(mean: float, sigma: float, number: int, rng: np.random.Generator) -> Any:
    return np.rint(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, number))
