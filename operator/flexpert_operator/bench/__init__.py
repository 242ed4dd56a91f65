"""An open-loop load on a server, and what its clients saw: for `flexpert bench serve` (`cli/bench.py`).

`schedule` says when requests are sent, `prompts` what they ask, `clients` sends one and times its stream, `drive` sends
all of them, `report` makes the numbers. Names of figures and lines are those of `vllm bench serve`.
"""
