"""`flexpert`: the command line's parser and its one place of error handling.

Each command is a module beside this one with `add_parser`, whose function returns the exit status.
"""

import argparse
import sys
from collections.abc import Sequence

from flexpert_operator.cli import (
    access,
    apply,
    bench,
    crds,
    drain,
    generate,
    local,
    plan,
    rebalance,
    simulate,
    status,
    support_bundle,
    top,
    trace,
)
from flexpert_operator.cli.errors import CliError
from flexpert_operator.errors import OperatorError
from flexpert_operator.local.state import LocalError
from flexpert_proto.client import GenerationError
from flexpert_proto.credentials import CredentialsError

COMMANDS = (local, apply, crds, generate, status, plan, rebalance, drain, top, trace, bench, simulate, support_bundle)
INTERRUPTED = 130


def parser(plugin: bool = False) -> argparse.ArgumentParser:
    """The whole command line, also as a plugin of kubectl."""
    name = "kubectl flexpert" if plugin else "flexpert"
    root = argparse.ArgumentParser(prog=name, description="Elastic mixture-of-experts serving for Kubernetes.")
    root.set_defaults(plugin=plugin)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return root


def plugin() -> int:
    """What kubectl runs for `kubectl flexpert`, by its name on PATH: kubectl-flexpert."""
    return main(plugin=True)


def main(arguments: Sequence[str] | None = None, plugin: bool = False) -> int:
    """Run a command: 0 when it worked, 1 when it failed, 2 when it was written wrongly."""
    options = parser(plugin).parse_args(arguments)
    if "namespace" in options:
        options.namespace = access.namespace_of(options)
    try:
        return int(options.run(options))
    except (CliError, LocalError, OperatorError, GenerationError, CredentialsError) as error:
        print(f"flexpert: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
