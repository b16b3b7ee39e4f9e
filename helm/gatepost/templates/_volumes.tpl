{{/* The volumes of a pod that Gatepost runs in. */}}

{{/* A list: the root, and what a volume, port or container is called. In somebody else's pod the name must not be taken. */}}
{{- define "gatepost.inPod" -}}
{{- $root := first . -}}
{{- $name := last . -}}
{{- ternary (printf "gatepost-%s" (trimPrefix "gatepost-" $name)) $name $root.Values.sidecar.enabled -}}
{{- end -}}

{{/* The group of the pod's volumes reads secrets. A sidecar's pod has no such group; nothing else mounts them there. */}}
{{- define "gatepost.secretMode" -}}
{{- ternary "0444" "0440" .Values.sidecar.enabled -}}
{{- end -}}

{{- define "gatepost.volumes" -}}
{{- $mode := include "gatepost.secretMode" . -}}
- name: {{ include "gatepost.inPod" (list . "config") }}
  configMap: { name: {{ include "gatepost.name" . }} }
{{- if .Values.tls.spiffe.enabled }}
- name: {{ include "gatepost.inPod" (list . "spiffe") }}
  {{- toYaml .Values.tls.spiffe.volume | nindent 2 }}
{{- else }}
- name: {{ include "gatepost.inPod" (list . "tls") }}
  {{- include "gatepost.volumes.tls" . | nindent 2 }}
{{- end }}
{{- if .Values.config.admin }}
- name: {{ include "gatepost.inPod" (list . "admin-tls") }}
  secret: { secretName: {{ .Values.admin.secretName }}, defaultMode: {{ $mode }} }
{{- end }}
- name: {{ include "gatepost.inPod" (list . "policies") }}
  {{- include "gatepost.volumes.policies" . | nindent 2 }}
{{- if .Values.policies.gitSync.repository }}
- name: {{ include "gatepost.inPod" (list . "git-tmp") }}
  emptyDir: {}
{{- with .Values.policies.gitSync.secretName }}
- name: {{ include "gatepost.inPod" (list $ "git-secret") }}
  secret: { secretName: {{ . }}, defaultMode: {{ $mode }} }
{{- end }}
{{- end }}
{{- if ne (include "gatepost.persistent" .) "true" }}
- name: {{ include "gatepost.inPod" (list . "audit") }}
  emptyDir: { sizeLimit: {{ .Values.audit.volume.size }} }
{{- end }}
{{- with .Values.audit.secretName }}
- name: {{ include "gatepost.inPod" (list $ "audit-keys") }}
  secret: { secretName: {{ . }}, defaultMode: {{ $mode }} }
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Certificate and key from one Secret, authorities from there or from elsewhere; swapped in one step all the same. */}}
{{- define "gatepost.volumes.tls" -}}
{{- $secret := ternary (printf "%s-tls" (include "gatepost.name" .)) .Values.tls.secretName .Values.tls.certManager.enabled -}}
{{- $authorities := .Values.tls.clientCA -}}
{{- $mode := include "gatepost.secretMode" . -}}
projected:
  defaultMode: {{ $mode }}
  sources:
    - secret:
        name: {{ $secret }}
        items:
          - { key: tls.crt, path: tls.crt }
          - { key: tls.key, path: tls.key }
    {{- if $authorities.configMapName }}
    - configMap:
        name: {{ $authorities.configMapName }}
        items: [{ key: {{ $authorities.key | quote }}, path: ca.crt }]
    {{- else }}
    - secret:
        name: {{ $authorities.secretName | default $secret }}
        items: [{ key: {{ $authorities.key | quote }}, path: ca.crt }]
    {{- end }}
{{- end -}}

{{- define "gatepost.volumes.policies" -}}
{{- if .Values.policies.files -}}
configMap: { name: {{ include "gatepost.name" . }}-policies }
{{- else if .Values.policies.image.reference -}}
image: { reference: {{ .Values.policies.image.reference | quote }}, pullPolicy: {{ .Values.policies.image.pullPolicy }} }
{{- else if .Values.policies.gitSync.repository -}}
emptyDir: {}
{{- else -}}
configMap: { name: {{ .Values.policies.configMapName }} }
{{- end -}}
{{- end -}}
