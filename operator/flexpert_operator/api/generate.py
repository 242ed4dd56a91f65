"""Writes the chart's CustomResourceDefinitions and docs/api.md from the models, for `make generate` and `make check`.

`python -m flexpert_operator.api.generate` rewrites; with `--check` it only compares and exits with 1 when stale.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import yaml

from flexpert_operator.api import crd, names, reference
from flexpert_operator.api.core_schema import core_schema

ROOT = Path(__file__).parents[3]
NOTICE = "# Generated from flexpert_operator.api by `make generate`: change it there.\n"


class Dumper(yaml.SafeDumper):
    """Writes everything in full, with text of two lines or more folded."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors: the API server's tools know none."""
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """What has neither a description nor anything below stands on one line."""
        short = "description" not in mapping and not any(isinstance(value, dict | list) for value in mapping.values())
        return super().represent_mapping(tag, mapping, flow_style=short or flow_style)


def as_yaml(document: dict[str, Any]) -> str:
    """A definition as the chart has it."""
    return NOTICE + yaml.dump(document, Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)


@functools.cache
def documents() -> dict[str, str]:
    """Text of every generated file, by its path in the repository."""
    definitions = {
        f"charts/flexpert/crds/{names.GROUP}_{kind.plural}.yaml": as_yaml(crd.definition(kind, core_schema))
        for kind in crd.KINDS
    }
    return definitions | {"docs/api.md": reference.page()}


def main() -> int:
    """Rewrite the generated files, or with `--check` report those that differ."""
    fresh = documents()
    stale = [path for path in fresh if not (ROOT / path).exists() or (ROOT / path).read_text() != fresh[path]]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path} is stale: run `make generate`")
        return 1 if stale else 0
    for path in stale:
        (ROOT / path).write_text(fresh[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
