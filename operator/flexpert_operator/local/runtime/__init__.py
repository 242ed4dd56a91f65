"""Plays KubeRay, the Deployment controller, the kubelet and kube-proxy on this host: Pods become real processes.

A life of a pod, each step in its file:

1. `watching` keeps a copy of the API's RayClusters, Deployments, Services, Pods, Secrets and ConfigMaps.
2. `kuberay` and `deployments` decide which Pod objects there should be, `kubelet` what happens to the processes of
   each, `volumes` what Secrets and ConfigMaps mount, `service_table` where Services lead. All are pure; `decide` puts
   them together.
3. `actuator` carries the decisions out: it is alone in writing to the API and in starting and ending processes.
   What a container's process is, is composed by `containers` and `ray_command`.
4. `probes` say which containers are ready.
"""
