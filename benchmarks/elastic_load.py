"""The load of `bench_elastic`: streams through an ingress that never end, and when each of their tokens came.

Runs in a process of its own. Each line on stdin is answered by a line of JSON with all that came since the last one:
`spans`, one a piece: [stream, end of the piece before, end of this piece, tokens], in seconds of the monotonic clock,
`completed`, and `failures`, the reason of every request that failed.
"""

import argparse
import asyncio
import json
import random
import sys
import time

from elastic_model import VOCABULARY

from flexpert_proto.client import AsyncGenerationClient, GenerationError

PROMPT_TOKENS, NEW_TOKENS = 16, 96
PAUSE_AFTER_FAILURE_S = 0.1


class Load:
    """A number of streams, each one request after another."""

    def __init__(self, address: str, streams: int) -> None:
        self._address = address
        self._streams = streams
        self._spans: list[tuple[int, float, float, int]] = []
        self._failures: list[str] = []
        self._completed = 0

    async def run(self) -> None:
        """Generate and answer until the end of the input."""
        async with AsyncGenerationClient(self._address) as client:
            streams = [asyncio.create_task(self._stream(client, number)) for number in range(self._streams)]
            while await asyncio.to_thread(sys.stdin.readline):
                print(json.dumps(self._report()), flush=True)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    def _report(self) -> dict[str, object]:
        told = {"spans": self._spans, "failures": self._failures, "completed": self._completed}
        self._spans, self._failures, self._completed = [], [], 0
        return told

    async def _stream(self, client: AsyncGenerationClient, number: int) -> None:
        generator = random.Random(number)
        before = time.monotonic()
        while True:
            prompt = [generator.randrange(1, VOCABULARY) for _ in range(PROMPT_TOKENS)]
            try:
                pieces = client.generate_stream(prompt, max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
                async for piece in pieces:
                    now = time.monotonic()
                    if piece.tokens:
                        self._spans.append((number, before, now, len(piece.tokens)))
                        before = now
                self._completed += 1
            except GenerationError as error:
                self._failures.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)


def main() -> None:
    """Load the ingress at an address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--streams", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(Load(options.address, options.streams).run())


if __name__ == "__main__":
    main()
