"""The chart on a real API server: Pod Security, and the operator under its service account."""

from pathlib import Path

import pytest
from chart_life import RELEASES, granted, live_a_whole_life
from chart_operator import LOG, USER, run_release
from chart_release import NAMESPACE, Chart, Object
from real_api_server import RealApiServer
from simulated_cluster import SimulatedCluster

from flexpert_operator.errors import KubeRefused
from flexpert_operator.kube import DEPLOYMENTS, PODS, RAY_CLUSTERS, SERVICES, Kube, api_client

pytestmark = pytest.mark.envtest
BLOCKING = ("flexpert.io", "moedeployments/finalizers", "update")
"""Asked for by the admission plugin OwnerReferencesPermissionEnforcement, which writes no audit."""


class CollectingCluster(SimulatedCluster):
    """Plays the garbage collector too: pods go with their RayCluster or Deployment."""

    def _tick(self) -> None:
        super()._tick()
        owners = [*self._kube.list(RAY_CLUSTERS, "default", ""), *self._kube.list(DEPLOYMENTS, "default", "")]
        living = {owner["metadata"]["uid"] for owner in owners}
        for pod in self._kube.list(PODS, "default", ""):
            if living.isdisjoint(one["uid"] for one in pod["metadata"].get("ownerReferences", ())):
                self._kube.delete(PODS, "default", pod["metadata"]["name"])


@pytest.fixture
def kube(api: RealApiServer, tmp_path: Path) -> Kube:
    return Kube(api_client(api.write_kubeconfig(tmp_path / "administrator")))


def test_the_operator_lives_by_its_roles(api: RealApiServer, chart: Chart, tmp_path: Path) -> None:
    values = RELEASES["all namespaces"]
    with run_release(chart, values, tmp_path, api, CollectingCluster) as world:
        live_a_whole_life(world, lambda: api.asked_by(USER))
    assert api.asked_by(USER) == granted(chart.objects(values)) - {BLOCKING}
    log = (tmp_path / LOG).read_text()
    assert "forbidden" not in log.lower(), log


def test_what_the_roles_do_not_say_is_refused(api: RealApiServer, kube: Kube, chart: Chart, tmp_path: Path) -> None:
    token = api.token_of(NAMESPACE, chart.one("ServiceAccount")["metadata"]["name"])
    operator = Kube(api_client(api.write_kubeconfig(tmp_path / "operator", token)))
    for path in ("/api/v1/namespaces/default/secrets", "/api/v1/secrets", "/api/v1/namespaces/default/configmaps"):
        with pytest.raises(KubeRefused, match="forbidden"):
            operator.request("GET", path)
    operator.create(SERVICES, "default", {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 1}]}})
    with pytest.raises(KubeRefused, match="forbidden"):
        operator.patch(SERVICES, "default", "s", {}, subresource="status")


def test_pods_pass_the_restricted_standard(kube: Kube, chart: Chart) -> None:
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": "restricted", "labels": restricted}})
    template: Object = chart.one("Deployment")["spec"]["template"]
    pod = {"metadata": {"name": "operator"}, "spec": template["spec"]}
    kube.create(PODS, "restricted", pod)
    loose = {"metadata": {"name": "loose"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    with pytest.raises(KubeRefused, match="violates PodSecurity"):
        kube.create(PODS, "restricted", loose)
