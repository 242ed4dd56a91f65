"""What sizing has to remember between two reconciliations; kept as an annotation of the RayCluster."""

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True)
class FailedGrowth:
    """A growth whose pods did not come: asked for by `generation`, given up at `at` (seconds since the Unix epoch)."""

    pods: int
    generation: int
    at: float


@dataclass(frozen=True)
class Sizing:
    """State of the expert group's size.

    Attributes:
        settled: Pods that the pool last ran with as asked for.
        aim: Pods that the pool was to run with when this was written.
        since: When the present size was asked for, seconds since the Unix epoch.
        victims: Pods that are drained to be deleted.
        failed: The last growth that failed, while it is not tried again.
        rolling: Whether pods of an older template are being replaced.
    """

    settled: int = 0
    aim: int = 0
    since: float = 0.0
    victims: tuple[str, ...] = ()
    failed: FailedGrowth | None = None
    rolling: bool = False

    def encode(self) -> str:
        """The state as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def decode(cls, text: str | None) -> Self:
        """The state that `encode` wrote; the initial one when there is none."""
        if not text:
            return cls()
        raw = json.loads(text)
        failed = FailedGrowth(**raw["failed"]) if raw["failed"] else None
        return cls(
            settled=raw["settled"],
            aim=raw.get("aim", 0),
            since=raw["since"],
            victims=tuple(raw["victims"]),
            failed=failed,
            rolling=raw.get("rolling", False),
        )
