"""`python -m flexpert_workers.checkpoint.walk [ARCHITECTURE …]`: renews the record and docs/models.md.

With names it tries those alone and writes nothing.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from transformers.utils import logging as transformers_logging

from flexpert_workers import threads
from flexpert_workers.checkpoint import architectures
from flexpert_workers.checkpoint.walk.discover import candidates
from flexpert_workers.checkpoint.walk.outcome import try_architecture
from flexpert_workers.checkpoint.walk.report import models_page

_RECORD = Path(architectures.__file__).parent / architectures.OUTCOMES_FILE
_PAGE = Path(__file__).parents[4] / "docs" / "models.md"


def main(names: list[str]) -> int:
    """Walk, print a line per architecture, write; returns the exit status."""
    os.environ[architectures.ENV_UNLISTED] = "try"
    threads.configure(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    outcomes = []
    near_ties = 0
    for candidate in candidates():
        if names and candidate.architecture not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome, comparison = try_architecture(candidate, Path(folder))
        outcomes.append(outcome)
        near_ties += comparison.near_ties if comparison is not None else 0
        print(f"{outcome.architecture}: {outcome.reason or 'served'} {comparison or ''}", flush=True)
    print(f"{sum(outcome.is_served for outcome in outcomes)} of {len(outcomes)} served, {near_ties} near ties")
    if not names:
        _RECORD.write_text(architectures.encode_outcomes(outcomes))
        _PAGE.parent.mkdir(exist_ok=True)
        _PAGE.write_text(models_page(outcomes))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE")
    sys.exit(main(parser.parse_args().names))
