"""The single-process reference: greedy text by transformers' own `generate`, as JSON on stdout.

Run by the demo as a process of its own: `reference.py CHECKPOINT MAX_TOKENS PROMPT…`.
"""

import json
import sys


def main() -> None:
    """Print `{prompt: text}`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    checkpoint, max_tokens, prompts = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = {}
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
        new = out[0, ids["input_ids"].shape[1] :]
        texts[prompt] = tokenizer.decode(new, skip_special_tokens=True)
    print(json.dumps(texts))


if __name__ == "__main__":
    main()
