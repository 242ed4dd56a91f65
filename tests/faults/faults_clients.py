"""Clients that never stop streaming greedy text, and compare every token with the reference's."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from flexpert_proto.client import GenerationClient, GenerationError

MAX_TOKENS = 40
TIMEOUT_S = 300
"""Of a request: a machine that is busy with other things may take a minute for one."""
NUM_CLIENTS = 2
PROMPTS: tuple[tuple[int, ...], ...] = ((17, 230, 45), (5, 6, 7, 8, 900), (1200, 31), (404, 77, 1999, 3, 50, 61))


def reference(folder: Path) -> list[tuple[int, ...]]:
    """What transformers' own greedy `generate` says to each of `PROMPTS`, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = GenerationConfig(max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    texts = [model.generate(torch.tensor([prompt]), generation_config=config)[0] for prompt in PROMPTS]
    return [tuple(text.tolist()[len(prompt) :]) for text, prompt in zip(texts, PROMPTS, strict=True)]


class Clients:
    """Threads that stream.

    Args:
        address: Of the ingress.
        expected: What is to be answered to each of `PROMPTS`.
        tries: Attempts at one stream: more than one where its ingress may go.

    Attributes:
        completed: Requests that ended well, with the reference's tokens.
        tokens: Received so far, of all requests.
        wrong: What was not so, in words.
    """

    def __init__(self, address: Callable[[], str], expected: Sequence[tuple[int, ...]], tries: int = 1) -> None:
        self.completed = 0
        self.tokens = 0
        self.wrong: list[str] = []
        self._address = address
        self._expected = expected
        self._tries = tries
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(NUM_CLIENTS)]

    def start(self) -> None:
        """Begin to stream."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the streams under way come to their end."""
        self._ending.set()
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()

    def take_wrong(self) -> list[str]:
        """What was not so, since it was last asked for."""
        with self._lock:
            taken, self.wrong = self.wrong, []
        return taken

    def _run(self, number: int) -> None:
        with GenerationClient(self._address, tries=self._tries) as client:
            while not self._ending.is_set():
                number = (number + 1) % len(PROMPTS)
                self._stream(client, number)

    def _stream(self, client: GenerationClient, number: int) -> None:
        received: list[int] = []
        try:
            for piece in client.generate_stream(
                PROMPTS[number], max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True, timeout_s=TIMEOUT_S
            ):
                received.extend([token.id for token in piece.tokens])
                with self._lock:
                    self.tokens += len(piece.tokens)
        except GenerationError as failed:
            self._note(f"prompt {number} failed behind {len(received)} tokens: {failed!r}")
            return
        if tuple(received) != self._expected[number]:
            self._note(f"prompt {number} was answered with {received}, not {self._expected[number]}")
        with self._lock:
            self.completed += 1

    def _note(self, wrong: str) -> None:
        with self._lock:
            self.wrong.append(wrong)
