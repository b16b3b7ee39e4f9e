{{- define "gatepost.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "gatepost.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "gatepost.labels" -}}
{{ include "gatepost.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "gatepost.image" -}}
{{- $repository := required "image.repository is missing: say where the Gatepost image is" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* "true" where the spool's volume outlives its pod. */}}
{{- define "gatepost.persistent" -}}
{{- $kind := .Values.audit.volume.kind -}}
{{- if not (has $kind (list "persistent" "ephemeral")) -}}
{{- fail (printf "audit.volume.kind must be persistent or ephemeral, not %v" $kind) -}}
{{- end -}}
{{- eq $kind "persistent" -}}
{{- end -}}

{{/* gatepost.yaml: what the user says, with the places that the chart itself mounts. */}}
{{- define "gatepost.config" -}}
{{- $identity := .Values.config.identity | default dict -}}
{{- if not (or $identity.trust_domains $identity.dns_san) -}}
{{- fail "config.identity.trust_domains is missing: name the trust domain of your SPIFFE IDs" -}}
{{- end -}}
{{- if not .Values.config.callers -}}
{{- fail "config.callers is missing: enrol the services that may ask; nobody else may" -}}
{{- end -}}
{{- range $index, $issuer := .Values.config.issuers -}}
{{- if not $issuer.audiences -}}
{{- fail (printf "config.issuers[%d].audiences is missing: add the audience that tokens for Gatepost carry" $index) -}}
{{- end -}}
{{- end -}}
{{- $server := dict "listen" "0.0.0.0:8443" "ops_listen" "0.0.0.0:9443" -}}
{{- if not (.Values.config.server | default dict).workload_api -}}
{{- $_ := mustMerge $server (dict "certificate" "/etc/gatepost/tls/tls.crt" "private_key" "/etc/gatepost/tls/tls.key" "client_ca" "/etc/gatepost/tls/ca.crt") -}}
{{- end -}}
{{- $policies := dict "directory" "/etc/gatepost/policies" -}}
{{- $audit := dict "spool" (dict "directory" "/var/lib/gatepost/audit") -}}
{{- $placed := dict "server" $server "policies" $policies "audit" $audit -}}
{{- if .Values.config.admin -}}
{{- $admin := dict "listen" "0.0.0.0:8444" "certificate" "/etc/gatepost/admin-tls/tls.crt" "private_key" "/etc/gatepost/admin-tls/tls.key" "client_ca" "/etc/gatepost/admin-tls/ca.crt" -}}
{{- $_ := set $placed "admin" $admin -}}
{{- end -}}
{{- mustMergeOverwrite (deepCopy .Values.config) $placed | toYaml -}}
{{- end -}}
