{{/*
Gatepost in somebody else's pod, under `spec` of it. A chart that has this one as a dependency, with `sidecar.enabled`, takes
the two from here: `{{ include "gatepost.sidecar.containers" .Subcharts.gatepost }}`. Everybody else finds them in the
ConfigMap of sidecar.yaml.
*/}}

{{/* Items of `initContainers`: with `restartPolicy: Always` they are up before the service, and end after it. */}}
{{- define "gatepost.sidecar.containers" -}}
{{- if .Values.policies.gitSync.repository }}
{{- include "gatepost.gitSync" . }}
{{ end }}
{{- include "gatepost.container" . }}
{{- end -}}

{{/* Items of `volumes`. */}}
{{- define "gatepost.sidecar.volumes" -}}
{{- include "gatepost.volumes" . }}
{{- end -}}

{{/* Annotations of the pod: another file of settings is another pod. */}}
{{- define "gatepost.sidecar.annotations" -}}
checksum/gatepost-config: {{ include "gatepost.config" . | sha256sum }}
{{- end -}}
