"""Which cluster the commands talk to, and the MoEDeployments they find there."""

import argparse
import os
from pathlib import Path
from typing import Any

import yaml
from kubernetes.config import ConfigException, list_kube_config_contexts

from flexpert_operator.cli.errors import CliError
from flexpert_operator.errors import KubeNotFound
from flexpert_operator.kube import MOE_DEPLOYMENTS, Kube, api_client
from flexpert_operator.local.layout import Layout, state_layout
from flexpert_proto import names as pool_names

_DEFAULT_KUBECONFIG = "~/.kube/config"
_NAMESPACE_OF_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_UNUSABLE = (ConfigException, OSError, ValueError, yaml.YAMLError)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options by which every command finds its cluster."""
    parser.add_argument("--kubeconfig", type=Path, help="file of the cluster (default: the laptop's, else as kubectl)")
    parser.add_argument("--state-dir", help="state folder of the laptop cluster (default: .flexpert)")
    parser.add_argument("--context", help="context of the kubeconfig (default: its current one)")
    parser.add_argument("-n", "--namespace", help="(default: the context's, else default)")


def layout_of(options: argparse.Namespace) -> Layout:
    """The laptop cluster's layout, whether or not it is up."""
    return state_layout(options.state_dir)


def connect(options: argparse.Namespace) -> Kube:
    """A client for the cluster that the options name.

    Raises:
        CliError: There is no kubeconfig, or it cannot be used.
    """
    path = kubeconfig_path(options)
    if is_laptop(options):
        use_services_of(layout_of(options))
    try:
        return Kube(api_client(path, options.context))
    except _UNUSABLE as error:
        if path is None:
            raise CliError("no cluster: run `flexpert local up`, or name a kubeconfig with --kubeconfig") from error
        raise CliError(f"the kubeconfig {path} cannot be used: {error}") from error


def kubeconfig_path(options: argparse.Namespace) -> Path | None:
    """`--kubeconfig`, else the laptop cluster's, else `$KUBECONFIG`, else the user's; None inside a cluster.

    As a plugin of kubectl the command asks the cluster that kubectl would, wherever it is called.
    """
    if options.kubeconfig is not None:
        return Path(options.kubeconfig)
    here = layout_of(options).kubeconfig
    if here.exists() and not options.plugin:
        return here
    usual = Path(os.environ.get("KUBECONFIG") or _DEFAULT_KUBECONFIG).expanduser()
    return usual if usual.exists() or "KUBECONFIG" in os.environ else None


def namespace_of(options: argparse.Namespace) -> str:
    """`--namespace`, else as kubectl: that of the context, or of the pod around us; where none says, `default`."""
    if options.namespace:
        return str(options.namespace)
    path = kubeconfig_path(options)
    try:
        if path is None:
            return _NAMESPACE_OF_POD.read_text().strip()
        contexts, current = list_kube_config_contexts(str(path))
    except _UNUSABLE:  # `connect` says what is wrong
        return "default"
    named = (one for one in contexts if one["name"] == options.context)
    return str((next(named, current)["context"] or {}).get("namespace") or "default")


def is_laptop(options: argparse.Namespace) -> bool:
    """Whether the options name the laptop cluster."""
    here = layout_of(options).kubeconfig
    path = kubeconfig_path(options)
    return path is not None and here.exists() and path.exists() and path.samefile(here)


def use_services_of(layout: Layout) -> None:
    """Let `names.resolve` find the Services of a laptop cluster."""
    if layout.services.exists():
        os.environ.setdefault(pool_names.ENV_SERVICES, str(layout.services))


def find_deployment(kube: Kube, namespace: str, name: str | None) -> dict[str, Any]:
    """The MoEDeployment with this name, or the only one.

    Raises:
        CliError: There is none, the cluster does not know the kind, or there are several and no name says which.
    """
    if name is not None:
        found = kube.find(MOE_DEPLOYMENTS, namespace, name)
        if found is None:
            list_deployments(kube, namespace)
            raise CliError(f"no MoEDeployment {name} in namespace {namespace}")
        return found
    deployments = list_deployments(kube, namespace)
    if len(deployments) == 1:
        return deployments[0]
    if not deployments:
        raise CliError(f"no MoEDeployment in namespace {namespace}: apply one with `flexpert apply -f FILE`")
    choices = ", ".join(item["metadata"]["name"] for item in deployments)
    raise CliError(f"several MoEDeployments in namespace {namespace}: name one of {choices}")


def list_deployments(kube: Kube, namespace: str) -> list[dict[str, Any]]:
    """All MoEDeployments of a namespace.

    Raises:
        CliError: The cluster does not know the kind.
    """
    try:
        return kube.list(MOE_DEPLOYMENTS, namespace, "")
    except KubeNotFound as error:
        raise CliError("this cluster does not know MoEDeployments: install the CRDs with the Helm chart") from error
