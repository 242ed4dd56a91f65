"""`flexpert apply -f FILE`: server-side apply of the objects in a file, for machines without kubectl."""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from flexpert_operator.api import names
from flexpert_operator.cli import access
from flexpert_operator.cli.errors import CliError
from flexpert_operator.errors import KubeNotFound
from flexpert_operator.kube import MOE_DEPLOYMENTS, POLICIES, SCALERS, Kube, Resource

FIELD_MANAGER = "flexpert"
_APPLY_PATCH = "application/apply-patch+yaml"
_KNOWN = {
    (names.GROUP, names.KIND): MOE_DEPLOYMENTS,
    (names.GROUP, names.POLICY_KIND): POLICIES,
    (names.GROUP, names.SCALER_KIND): SCALERS,
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("apply", help="create or change the objects of ours in a file")
    parser.add_argument("-f", "--filename", required=True, help="YAML file, or - for standard input")
    parser.add_argument("--force-conflicts", action="store_true", help="take over fields that others set")
    access.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Apply every object of the file."""
    objects = read_objects(options.filename)
    kube = access.connect(options)
    for obj in objects:
        applied = apply(kube, obj, options.namespace, options.force_conflicts)
        print(f"{obj['kind'].lower()}.{names.GROUP}/{applied['metadata']['name']} applied")
    return 0


def read_objects(filename: str) -> list[dict[str, Any]]:
    """The objects of a YAML file.

    Raises:
        CliError: No such file, not YAML, or something that is no object of ours.
    """
    try:
        text = sys.stdin.read() if filename == "-" else Path(filename).read_text()
        objects = [document for document in yaml.safe_load_all(text) if document]
    except OSError as error:
        raise CliError(f"{filename}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise CliError(f"{filename} is not YAML: {' '.join(str(error).split())}") from error
    if not objects:
        raise CliError(f"{filename} holds no object")
    for obj in objects:
        _check(filename, obj)
    return objects


def _check(filename: str, obj: Any) -> None:
    if not isinstance(obj, dict) or not isinstance(obj.get("metadata"), dict) or not obj["metadata"].get("name"):
        raise CliError(f"{filename}: each document needs apiVersion, kind and metadata.name")
    group = str(obj.get("apiVersion", "")).partition("/")[0]
    if (group, obj.get("kind")) not in _KNOWN:
        raise CliError(f"{filename}: {obj.get('apiVersion')} {obj.get('kind')}: use kubectl for other kinds than ours")


def apply(kube: Kube, obj: dict[str, Any], namespace: str, force: bool) -> dict[str, Any]:
    """Server-side apply of one object; a field that the schema does not know is refused."""
    resource: Resource = _KNOWN[obj["apiVersion"].partition("/")[0], obj["kind"]]
    where = obj["metadata"].get("namespace", namespace)
    query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", "force": "true" if force else "false"}
    try:
        return kube.request("PATCH", resource.path(where, obj["metadata"]["name"]), obj, query, _APPLY_PATCH)
    except KubeNotFound as error:
        raise CliError(f"this cluster does not know {obj['kind']}s: install the CRDs with the Helm chart") from error
