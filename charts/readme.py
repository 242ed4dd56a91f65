"""Writes the table of values in the chart's README from the comments of values.yaml; `make generate` runs it.

The convention is helm-docs': a comment `# -- …` above a value describes it. One above an object describes all of it;
else each value in it needs one of its own. `--check` writes nothing and fails where the README is stale.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "flexpert"
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"
MARK = "# -- "
TYPES = {bool: "bool", int: "int", float: "float", str: "string", list: "list", dict: "object", type(None): "null"}


class DocumentationError(Exception):
    """values.yaml lacks a description, or the README its marks."""


@dataclass(frozen=True)
class Value:
    """A row of the table."""

    path: str
    default: Any
    description: str

    def row(self) -> str:
        """The row in Markdown."""
        cells = (self.path, TYPES[type(self.default)], f"`{json.dumps(self.default)}`", self.description)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def values_of(text: str) -> Iterator[Value]:
    """Every described value of a values.yaml, in its order.

    Raises:
        DocumentationError: A value has no description.
    """
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    yield from walk(root, yaml.safe_load(text), "", lines)


def walk(node: yaml.MappingNode, values: dict[str, Any], prefix: str, lines: list[str]) -> Iterator[Value]:
    """The values below a mapping, whose nodes tell where each key stands."""
    for key, below in node.value:
        path, value = f"{prefix}{key.value}", values[key.value]
        description = comment_above(lines, key.start_mark.line)
        if description:
            yield Value(path, value, description)
        elif isinstance(below, yaml.MappingNode) and below.value:
            yield from walk(below, value, f"{path}.", lines)
        else:
            raise DocumentationError(f"values.yaml:{key.start_mark.line + 1}: {path} has no comment `{MARK}…` above it")


def comment_above(lines: list[str], line: int) -> str:
    """The description that ends above a line (counted from 0); empty where there is none."""
    words: list[str] = []
    for above in reversed(lines[:line]):
        text = above.strip()
        if text.startswith(MARK):
            return " ".join([text.removeprefix(MARK), *reversed(words)])
        if not text.startswith("#"):
            return ""
        words.append(text.removeprefix("#").strip())
    return ""


def with_table(readme: str, values: Iterator[Value]) -> str:
    """A README with the table of values between its marks.

    Raises:
        DocumentationError: It has no marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DocumentationError(f"the README lacks the lines {BEGIN.strip()} and {END.strip()}")
    rows = ["| Key | Type | Default | Description |", "|---|---|---|---|", *(value.row() for value in values)]
    return f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the README, or check it."""
    readme = CHART / "README.md"
    try:
        wanted = with_table(readme.read_text(), values_of((CHART / "values.yaml").read_text()))
    except DocumentationError as error:
        print(f"charts/flexpert: {error}", file=sys.stderr)
        return 1
    if "--check" not in arguments:
        readme.write_text(wanted)
    elif readme.read_text() != wanted:
        print("charts/flexpert/README.md is stale: run `make generate`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
