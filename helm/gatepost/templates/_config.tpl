{{/* gatepost.yaml: what the user says, with the places that the chart itself mounts. */}}

{{/* The folder of the bundle, in the container. */}}
{{- define "gatepost.policies.directory" -}}
{{- $path := "" -}}
{{- if .Values.policies.image.reference }}{{ $path = .Values.policies.image.path }}{{ end -}}
{{- if .Values.policies.gitSync.repository }}{{ $path = printf "current/%s" .Values.policies.gitSync.path }}{{ end -}}
{{- printf "/etc/gatepost/policies/%s" $path | trimSuffix "/" -}}
{{- end -}}

{{- define "gatepost.config" -}}
{{- /* A sidecar is asked by its own pod alone; kubelets look at it from outside. */ -}}
{{- $address := ternary "127.0.0.1" "0.0.0.0" .Values.sidecar.enabled -}}
{{- $server := dict "listen" (printf "%s:%s" $address (include "gatepost.listens" (list . "grpc"))) "ops_listen" (printf "0.0.0.0:%s" (include "gatepost.listens" (list . "ops"))) -}}
{{- if .Values.tls.spiffe.enabled -}}
{{- $_ := set $server "workload_api" (printf "unix:///run/spiffe/%s" .Values.tls.spiffe.socket) -}}
{{- else -}}
{{- $_ := mustMerge $server (dict "certificate" "/etc/gatepost/tls/tls.crt" "private_key" "/etc/gatepost/tls/tls.key" "client_ca" "/etc/gatepost/tls/ca.crt") -}}
{{- end -}}
{{- $policies := dict "directory" (include "gatepost.policies.directory" .) -}}
{{- $audit := dict "spool" (dict "directory" "/var/lib/gatepost/audit") -}}
{{- $placed := dict "server" $server "policies" $policies "audit" $audit -}}
{{- if .Values.config.admin -}}
{{- $admin := dict "listen" (printf "%s:%s" $address (include "gatepost.listens" (list . "admin"))) "certificate" "/etc/gatepost/admin-tls/tls.crt" "private_key" "/etc/gatepost/admin-tls/tls.key" "client_ca" "/etc/gatepost/admin-tls/ca.crt" -}}
{{- $_ := set $placed "admin" $admin -}}
{{- end -}}
{{- mustMergeOverwrite (deepCopy .Values.config) $placed | toYaml -}}
{{- end -}}
