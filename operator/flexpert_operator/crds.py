"""Where the CustomResourceDefinitions are: beside the chart in a checkout, inside the package in a wheel.

The laptop runtime, the CLI and the tests install them from here.
"""

from pathlib import Path
from typing import Any

import yaml

LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C takes a fifth of the time, where PyYAML was built with it."""


def crd_folder() -> Path:
    """The folder of the CRDs' YAML files.

    Raises:
        FileNotFoundError: The installation is broken: neither place exists.
    """
    package = Path(__file__).parent
    places = (package / "custom_resources", package.parents[1] / "charts" / "flexpert" / "crds")
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"no CustomResourceDefinitions in {' or '.join(map(str, places))}: install flexpert again")


def load_crds() -> list[dict[str, Any]]:
    """All CRDs of the project as objects, in the order of their file names."""
    return [
        document
        for file in sorted(crd_folder().glob("*.yaml"))
        for document in yaml.load_all(file.read_text(), Loader=LOADER)
        if document
    ]
