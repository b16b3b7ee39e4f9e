{{/* What things are called, and what is written on them. */}}

{{- define "gatepost.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $chart := .Values.nameOverride | default .Chart.Name -}}
{{- if contains $chart .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $chart | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Never changes for a release: a workload's selector can't. */}}
{{- define "gatepost.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Ours win: what selects, and what says whose it is, is not for choosing. */}}
{{- define "gatepost.labels" -}}
{{- $own := include "gatepost.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") -}}
{{- mustMerge $own (.Values.commonLabels | default dict) | toYaml -}}
{{- end -}}

{{/* A dict: `root`; `suffix` of the name, `labels` and `annotations` besides everybody's. */}}
{{- define "gatepost.metadata" -}}
name: {{ include "gatepost.name" .root }}{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- mustMerge (include "gatepost.labels" .root | fromYaml) (.labels | default dict) | toYaml | nindent 2 }}
{{- with mustMerge (dict) (.annotations | default dict) (.root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "gatepost.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "gatepost.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* An image's `repository`, `digest` and `tag`. */}}
{{- define "gatepost.reference" -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository .tag -}}
{{- end -}}
{{- end -}}

{{/* "true" where the spool's volume outlives its pod. */}}
{{- define "gatepost.persistent" -}}
{{- eq .Values.audit.volume.kind "persistent" -}}
{{- end -}}

{{- define "gatepost.workloadKind" -}}
{{- eq (include "gatepost.persistent" .) "true" | ternary "StatefulSet" "Deployment" -}}
{{- end -}}

{{/* "true" where there may be two pods or more. */}}
{{- define "gatepost.several" -}}
{{- if .Values.autoscaling.enabled -}}
{{- gt (int .Values.autoscaling.maxReplicas) 1 -}}
{{- else -}}
{{- gt (int .Values.replicas) 1 -}}
{{- end -}}
{{- end -}}
