"""The laptop: an embedded Kubernetes API, the operator and a runtime that plays KubeRay, as processes of this host."""
