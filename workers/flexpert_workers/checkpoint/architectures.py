"""Which architectures are served: facts of the name, the configuration and the class, and the recorded walk.

`checkpoint.open_checkpoint` asks before it looks at any weight, so that a model that cannot be served is refused when
it is applied, by name and with the reason. `outcomes.json` is what `checkpoint.walk` recorded: every architecture of
the pinned transformers whose experts implement its experts interface, and whether its text equalled `generate`'s.
"""

import inspect
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from flexpert_workers.errors import UnsupportedArchitecture

OUTCOMES_FILE = "outcomes.json"
ENV_UNLISTED = "FLEXPERT_UNLISTED_ARCHITECTURES"
"""Set to "try" to serve an architecture that the record does not list as served; the walk does, to renew it."""

_SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "mlp", "moe"})


@dataclass(frozen=True)
class Outcome:
    """What the walk found of one architecture.

    Attributes:
        module: Its model module in transformers, e.g. "mixtral".
        reason: Why it is refused; empty when it is served.
    """

    module: str
    architecture: str
    reason: str

    @property
    def is_served(self) -> bool:
        """Whether checkpoints of it are served."""
        return not self.reason


def recorded_outcomes() -> tuple[Outcome, ...]:
    """The record, by module and architecture."""
    text = resources.files(__package__).joinpath(OUTCOMES_FILE).read_text()
    return tuple(Outcome(**row) for row in json.loads(text))


def encode_outcomes(outcomes: Iterable[Outcome]) -> str:
    """The record as it stands in `outcomes.json`."""
    return json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n"


def check_name(architecture: str) -> None:
    """Refuse what the name alone rules out.

    Raises:
        UnsupportedArchitecture: Naming the architecture and why.
    """
    if not architecture.endswith("ForCausalLM"):
        raise _refused(architecture, "it is not a causal language model (…ForCausalLM), from token ids to token ids")


def check_config(config: Any, architecture: str) -> None:
    """Refuse what the configuration rules out.

    Raises:
        UnsupportedArchitecture: Naming the architecture and why.
    """
    for reason in _config_reasons(config):
        raise _refused(architecture, reason)


def check_experts(experts: tuple[Any, ...], architecture: str) -> None:
    """Refuse a model whose experts cannot be taken apart.

    Raises:
        UnsupportedArchitecture: Naming the architecture and why.
    """
    for reason in _experts_reasons(experts):
        raise _refused(architecture, reason)


def check_windows(config: Any, attention: Iterable[Any], architecture: str) -> None:
    """Refuse sliding windows that stand in transformers' mask alone: the engine builds no mask, so its attention has
    to be told.

    Args:
        config: The configuration.
        attention: The model's attention modules.
        architecture: For the message.

    Raises:
        UnsupportedArchitecture: Naming the architecture and why.
    """
    if not _has_windows(config):
        return
    for attention_class in {type(module) for module in attention}:
        if "sliding_window=" not in inspect.getsource(attention_class):
            raise _refused(
                architecture, "its sliding window is shorter than its context, and its attention is not told"
            )


def check_recorded(architecture: str) -> None:
    """Refuse an architecture that the walk did not find to be served.

    Raises:
        UnsupportedArchitecture: Naming the architecture and why.
    """
    if os.environ.get(ENV_UNLISTED) == "try":
        return
    found = {outcome.architecture: outcome for outcome in recorded_outcomes()}.get(architecture)
    if found is None:
        raise _refused(architecture, "its text has not been compared with transformers' own; see docs/models.md")
    if not found.is_served:
        raise _refused(architecture, found.reason)


def _refused(architecture: str, reason: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(f"{architecture} is not served: {reason}")


def _has_windows(config: Any) -> bool:
    """Whether some layer sees less than the whole context."""
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if not window or window >= config.max_position_embeddings:
        return False
    return layer_types is None or "sliding_attention" in layer_types


def _config_reasons(config: Any) -> Iterator[str]:
    if getattr(config, "is_encoder_decoder", False):
        yield "it is an encoder-decoder model"
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - _SERVED_LAYER_TYPES)
    if unknown:
        yield f"its layers of type {', '.join(unknown)} need more state than keys and values"


def _experts_reasons(experts: tuple[Any, ...]) -> Iterator[str]:
    if not experts:
        yield "this checkpoint has no layer whose experts implement transformers' experts interface"
        return
    for name, _ in experts[0].named_buffers():
        yield f"its experts keep a buffer ({name})"
    for name, parameter in experts[0].named_parameters():
        if parameter.shape[0] != experts[0].num_experts:
            yield f"its experts share a parameter ({name})"
