"""Objects that a schema describes, nearly: the fuzz test draws them.

Most values are what the schema asks for, often at the edge of what it allows; some are not, so that a good part of the
objects has to be refused. Hypothesis draws a number, and an object follows from it: an object has some hundred choices,
which hypothesis would make one by one in twenty times the time that everything after it takes.
"""

from random import Random
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
WRONG_ONE_IN = 150
MOST_OPTIONAL = 4
BYTES = ["1Gi", "1.5Gi", "10k", "3M", "64Mi", 1, 2**31, 2**40, "9Ei", "100M"]
AMOUNTS = ["1", "100m", "2", "1Gi", 1, 0, "0"]
WRONG_AMOUNTS = ["1e3", "-1", "4 Gi", "", "Gi"]
NAMES = ["a", "b", "c", "d"]
WRONG_NAMES = ["shm", "model", "x" * 64, "A", "a.b", "-a", "", "a\n", "a/b/c", "flexpert.io/role"]
WORDS = {
    "source": ["file:///models/tiny", "pvc://claim/m"],
    "revision": ["main"],
    "mountPath": ["/data", "/scratch", "/volumes/x"],
}
WRONG_WORDS = {
    "source": ["hf://owner/name", "hf://a", "file://", "ftp://x", ""],
    "revision": ["v1", ""],
    "mountPath": ["/dev/shm", "relative", "/a:b"],
}
FULL_OF_RULES = ("model",)
"""Objects most of whose fields exclude each other."""

NUMBERS = {"minReplicasPerExpert": [1, 1, 1, 2], "grpcPort": [9000, 9001], "httpPort": [8000, 8001]}
JUNK = [None, True, -(2**63), 2**63, 2**63 - 1, 0.5, 1e300, "", "x", "Ünï", "a\n", [], {}, [{}], [[]], {"unknown": 1}]


def nearly(schema: Schema) -> st.SearchStrategy[Any]:
    """Objects of a schema, and some that are not."""
    return st.integers(0, 2**63).map(lambda seed: value(Random(seed), schema, ""))


def value(random: Random, schema: Schema, name: str) -> Any:
    """A value for a schema, or now and then something else."""
    if seldom(random):
        return random.choice(JUNK)
    if schema.get("x-kubernetes-int-or-string"):
        right = BYTES if schema.get("pattern", "").startswith("^[1-9]") else AMOUNTS
        return either(random, right, WRONG_AMOUNTS)
    match schema.get("type"):
        case "object":
            return an_object(random, schema, 0 if name in FULL_OF_RULES and random.random() < 0.8 else MOST_OPTIONAL)
        case "array":
            return [value(random, schema["items"], name) for _ in range(random.randint(0, 2))]
        case "boolean":
            return random.random() < 0.5
        case "integer":
            return number(random, schema, name)
        case _:
            return text(random, schema, name)


def an_object(random: Random, schema: Schema, most_optional: int) -> Any:
    """An object with what is required and a few fields beside it."""
    properties = schema.get("properties", {})
    if not properties:
        below = schema.get("additionalProperties", {})
        return {either(random, NAMES, WRONG_NAMES): value(random, below, "") for _ in range(random.randint(0, 2))}
    required = schema.get("required", [])
    others = [field for field in properties if field not in required]
    chosen = random.sample(others, min(random.randint(0, most_optional), len(others)))
    found = {field: value(random, properties[field], field) for field in [*required, *chosen]}
    if "volumeMounts" in found and "volumes" not in found:
        found["volumes"] = value(random, properties["volumes"], "volumes")
    return found | ({"unknownField": 1} if seldom(random) else {})


def number(random: Random, schema: Schema, name: str) -> int:
    """A whole number, some at the bounds."""
    low, high = schema.get("minimum", 0), schema.get("maximum", 2**31 - 1)
    right = NUMBERS.get(name, [*range(low, min(high, low + 8) + 1), low, high])
    return int(either(random, right, [low - 1, high + 1]))


def text(random: Random, schema: Schema, name: str) -> Any:
    """A text that the field may have, or one that it may not."""
    if schema.get("enum"):
        return either(random, schema["enum"], ["Other"])
    return either(random, WORDS.get(name, NAMES), WRONG_WORDS.get(name, WRONG_NAMES))


def either(random: Random, right: list[Any], wrong: list[Any]) -> Any:
    """Mostly the one."""
    return random.choice(wrong if seldom(random) else right)


def seldom(random: Random) -> bool:
    """Whether this time it is to be wrong."""
    return random.randrange(WRONG_ONE_IN) == 0
