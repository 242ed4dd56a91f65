{{- define "flexpert.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "flexpert.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "flexpert.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of objects at cluster scope: of a release of this name in another namespace they are others. */}}
{{- define "flexpert.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "flexpert.fullname" .) -}}
{{- end -}}

{{- define "flexpert.selectorLabels" -}}
app.kubernetes.io/name: {{ include "flexpert.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "flexpert.labels" -}}
{{ include "flexpert.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "flexpert.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "flexpert.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* An image by its digest where there is one, else by its tag. Takes the image's values and the chart's version. */}}
{{- define "flexpert.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default (index . 1) $image.tag }}
{{- end -}}
{{- end -}}

{{/* "true" where Nodes are watched. */}}
{{- define "flexpert.watchesNodes" -}}
{{- if kindIs "invalid" .Values.watchNodes.enabled -}}
{{- if not .Values.watchNamespaces }}true{{ end -}}
{{- else if .Values.watchNodes.enabled -}}true{{- end -}}
{{- end -}}

{{/* What the operator does in each namespace that it looks after. */}}
{{- define "flexpert.namespacedRules" -}}
- apiGroups: [flexpert.io]
  resources: [moedeployments]
  verbs: [get, list, watch, patch]
- apiGroups: [flexpert.io]
  resources: [moedeployments/status]
  verbs: [patch]
# A policy or scaler is only read: what was decided stands in its status.
- apiGroups: [flexpert.io]
  resources: [moeautoscalingpolicies, moescalers]
  verbs: [list, watch]
- apiGroups: [flexpert.io]
  resources: [moeautoscalingpolicies/status, moescalers/status]
  verbs: [patch]
# Owner references with blockOwnerDeletion, which the admission plugin OwnerReferencesPermissionEnforcement asks for.
- apiGroups: [flexpert.io]
  resources: [moedeployments/finalizers]
  verbs: [update]
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [get, list, watch, create, update, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
{{- if .Values.networkPolicy.pools.enabled }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
{{- end }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* Who may reach the pods of pools from outside of them, as the operator's option takes it. */}}
{{- define "flexpert.poolNetwork" -}}
{{- $namespace := dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace) -}}
{{- $pod := dict "matchLabels" (include "flexpert.selectorLabels" . | fromYaml) -}}
{{- $operator := dict "namespaceSelector" $namespace "podSelector" $pod -}}
{{- dict "operators" (list $operator) "clients" .Values.networkPolicy.pools.clientPeers "monitors" .Values.networkPolicy.metricsPeers | toJson -}}
{{- end -}}

{{/* What the operator does at cluster scope where Nodes are watched. */}}
{{- define "flexpert.nodeRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
{{- end -}}
