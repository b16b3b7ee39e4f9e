{{/*
What can't be rendered, and what would be right: everything at once, one sentence a line, each with its key. What has the
wrong shape is refused before, by values.schema.json.
*/}}

{{- define "gatepost.check" -}}
{{- $told := list -}}
{{- range list "given" "placed" "certificates" "policies" "fits" "sidecar" -}}
{{- $found := include (printf "gatepost.refusals.%s" .) $ | trim -}}
{{- if $found }}{{ $told = append $told $found }}{{ end -}}
{{- end -}}
{{- if $told }}{{ fail (printf "\n%s\n" (join "\n" $told)) }}{{ end -}}
{{- end -}}

{{/* What only the user knows. */}}
{{- define "gatepost.refusals.given" -}}
{{- $identity := .Values.config.identity | default dict -}}
{{- if not .Values.image.repository }}
image.repository is missing: say where the Gatepost image is
{{- end }}
{{- if not (or $identity.trust_domains $identity.dns_san) }}
config.identity.trust_domains is missing: name the trust domain of your SPIFFE IDs
{{- end }}
{{- if not .Values.config.callers }}
config.callers is missing: enrol the services that may ask; nobody else may
{{- end }}
{{- if kindIs "invalid" .Values.config.issuers }}
config.issuers is missing: name the issuers whose tokens are accepted; for none, say `issuers: []`
{{- end }}
{{- range $index, $issuer := .Values.config.issuers }}
{{- if not $issuer.audiences }}
config.issuers[{{ $index }}].audiences is missing: add the audience that tokens for Gatepost carry
{{- end }}
{{- end }}
{{- if and .Values.config.admin (not .Values.admin.secretName) }}
admin.secretName is missing: name the Secret with tls.crt, tls.key and ca.crt of the admin listener
{{- end }}
{{- end -}}

{{/* What the chart sets. Overwriting it in silence would let somebody believe in a setting that does not hold. */}}
{{- define "gatepost.refusals.placed" -}}
{{- $places := dict
  "server.listen" "the chart listens on 8443"
  "server.ops_listen" "the chart listens on 9443"
  "server.certificate" "say where certificates come from in `tls`"
  "server.private_key" "say where certificates come from in `tls`"
  "server.client_ca" "say where authorities come from in `tls.clientCA`"
  "server.workload_api" "switch on `tls.spiffe`"
  "policies.directory" "say where the bundle comes from in `policies`"
  "admin.listen" "the chart listens on 8444"
  "admin.certificate" "name its Secret in `admin.secretName`"
  "admin.private_key" "name its Secret in `admin.secretName`"
  "admin.client_ca" "name its Secret in `admin.secretName`"
-}}
{{- range $key, $mend := $places }}
{{- $section := get $.Values.config (dir (replace "." "/" $key)) | default dict }}
{{- if not (kindIs "invalid" (get $section (base (replace "." "/" $key)) | default nil)) }}
config.{{ $key }} is set by the chart: take it out; {{ $mend }}
{{- end }}
{{- end }}
{{- if ((.Values.config.audit | default dict).spool | default dict).directory }}
config.audit.spool.directory is set by the chart: take it out; the volume is described in `audit.volume`
{{- end }}
{{- end -}}

{{- define "gatepost.refusals.certificates" -}}
{{- $tls := .Values.tls -}}
{{- $sources := list -}}
{{- if $tls.secretName }}{{ $sources = append $sources "tls.secretName" }}{{ end -}}
{{- if $tls.certManager.enabled }}{{ $sources = append $sources "tls.certManager.enabled" }}{{ end -}}
{{- if $tls.spiffe.enabled }}{{ $sources = append $sources "tls.spiffe.enabled" }}{{ end -}}
{{- if not $sources }}
tls.secretName is missing: name the Secret with tls.crt, tls.key and ca.crt, or switch on `tls.certManager` or `tls.spiffe`
{{- else if gt (len $sources) 1 }}
{{ join " and " $sources }} exclude each other: certificates have one source; keep one of them
{{- end }}
{{- if and $tls.certManager.enabled (not $tls.certManager.issuerRef.name) }}
tls.certManager.issuerRef.name is missing: name the Issuer that signs
{{- end }}
{{- $kinds := list -}}
{{- range $kind, $volume := $tls.spiffe.volume }}{{ if not (kindIs "invalid" $volume) }}{{ $kinds = append $kinds $kind }}{{ end }}{{ end -}}
{{- if and $tls.spiffe.enabled (ne (len $kinds) 1) }}
tls.spiffe.volume must be one kind of volume, and is {{ join " and " $kinds | default "none" }}: beside another, say `csi: null`
{{- end }}
{{- $authorities := list -}}
{{- if $tls.clientCA.secretName }}{{ $authorities = append $authorities "tls.clientCA.secretName" }}{{ end -}}
{{- if $tls.clientCA.configMapName }}{{ $authorities = append $authorities "tls.clientCA.configMapName" }}{{ end -}}
{{- if gt (len $authorities) 1 }}
{{ join " and " $authorities }} exclude each other: authorities have one source; keep one of them
{{- end }}
{{- if and $tls.spiffe.enabled $authorities }}
{{ first $authorities }} counts for nothing beside tls.spiffe, which brings its own authorities: take it out
{{- end }}
{{- end -}}

{{- define "gatepost.refusals.policies" -}}
{{- $policies := .Values.policies -}}
{{- $sources := list -}}
{{- if $policies.files }}{{ $sources = append $sources "policies.files" }}{{ end -}}
{{- if $policies.configMapName }}{{ $sources = append $sources "policies.configMapName" }}{{ end -}}
{{- if $policies.image.reference }}{{ $sources = append $sources "policies.image.reference" }}{{ end -}}
{{- if $policies.gitSync.repository }}{{ $sources = append $sources "policies.gitSync.repository" }}{{ end -}}
{{- if not $sources }}
policies.configMapName is missing: name the ConfigMap with the policy bundle, or give `policies.files`, `policies.image` or `policies.gitSync`
{{- else if gt (len $sources) 1 }}
{{ join " and " $sources }} exclude each other: a bundle has one source; keep one of them
{{- end }}
{{- range $name, $_ := $policies.files }}
{{- if not (regexMatch "^([A-Za-z0-9_-][A-Za-z0-9._-]*\\.(cedar|cedarschema)|entities\\.json)$" $name) }}
policies.files: {{ $name }} is no file of a bundle, and would count for nothing: name it *.cedar, *.cedarschema or entities.json
{{- end }}
{{- end }}
{{- $version := .Capabilities.KubeVersion.Version -}}
{{- if and $policies.image.reference (semverCompare "<1.31-0" $version) }}
policies.image.reference needs Kubernetes 1.31 or newer, and this is {{ $version }}: take another source
{{- end }}
{{- if and $policies.gitSync.repository (semverCompare "<1.29-0" $version) }}
policies.gitSync.repository needs Kubernetes 1.29 or newer, and this is {{ $version }}: take another source
{{- end }}
{{- end -}}

{{/* What has to fit together. */}}
{{- define "gatepost.refusals.fits" -}}
{{- $server := .Values.config.server | default dict -}}
{{- $drain := add (include "gatepost.milliseconds" ($server.drain_delay | default "0s")) (include "gatepost.milliseconds" ($server.drain_timeout | default "10s")) -}}
{{- if le (mul (int64 .Values.terminationGracePeriodSeconds) 1000) $drain }}
terminationGracePeriodSeconds must be more than config.server.drain_delay and config.server.drain_timeout together, or calls are cut off: raise it over {{ divf (float64 $drain) 1000 }}
{{- end }}
{{- $spool := (.Values.config.audit | default dict).spool | default dict -}}
{{- if le (include "gatepost.bytes" .Values.audit.volume.size | float64) (include "gatepost.bytes" ($spool.max_bytes | default "4GiB") | float64) }}
audit.volume.size must be more than config.audit.spool.max_bytes ({{ $spool.max_bytes | default "4GiB" }}), or the disk is full before the spool is: raise it
{{- end }}
{{- $revocation := .Values.config.revocation | default dict -}}
{{- if and .Values.config.admin (eq (include "gatepost.several" .) "true") (not .Values.sidecar.enabled) (not (or $revocation.redis $revocation.file)) }}
config.revocation is missing: what is revoked through one pod would be accepted by the others; set config.revocation.redis, or the file that all of them share
{{- end }}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) }}
autoscaling.maxReplicas must be no less than autoscaling.minReplicas: raise it
{{- end }}
{{- if and .Values.service.headless (ne .Values.service.type "ClusterIP") }}
service.headless needs service.type ClusterIP: a Service without an address has none to give outside
{{- end }}
{{- end -}}

{{- define "gatepost.refusals.sidecar" -}}
{{- if .Values.sidecar.enabled }}
{{- if eq .Values.audit.volume.kind "persistent" }}
audit.volume.kind must be ephemeral for a sidecar: the pod is not the chart's to give a volume to; let a sink of config.audit.sinks keep what must last
{{- end }}
{{- if semverCompare "<1.29-0" .Capabilities.KubeVersion.Version }}
sidecar.enabled needs Kubernetes 1.29 or newer, and this is {{ .Capabilities.KubeVersion.Version }}
{{- end }}
{{- $numbers := values .Values.sidecar.ports }}
{{- if ne (len $numbers) (len (uniq $numbers)) }}
sidecar.ports must all differ: give each its own
{{- end }}
{{- range $key, $on := dict "autoscaling.enabled" .Values.autoscaling.enabled "service.headless" .Values.service.headless "monitoring.serviceMonitor.enabled" .Values.monitoring.serviceMonitor.enabled }}
{{- if $on }}
{{ $key }} counts for nothing beside sidecar.enabled: pods and their Service are somebody else's; take it out
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
