{{/* The containers and what is mounted into them. A sidecar's are the same, but for the pod around them. */}}

{{/* Not for choosing: no container here needs more. */}}
{{- define "gatepost.secured" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{/* A list: the root, and a port by its name. A pod of ours has nobody else to be in the way of. */}}
{{- define "gatepost.listens" -}}
{{- $root := first . -}}
{{- $ports := dict "grpc" 8443 "ops" 9443 "admin" 8444 "gitSync" 9444 -}}
{{- if $root.Values.sidecar.enabled }}{{ $ports = $root.Values.sidecar.ports }}{{ end -}}
{{- get $ports (last .) | int -}}
{{- end -}}

{{- define "gatepost.container" -}}
- name: gatepost
  image: {{ include "gatepost.reference" (dict "repository" .Values.image.repository "digest" .Values.image.digest "tag" (.Values.image.tag | default .Chart.AppVersion)) | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [serve, --config, /etc/gatepost/config/gatepost.yaml]
  {{- if .Values.sidecar.enabled }}
  # Up before the service, and there until it has ended.
  restartPolicy: Always
  {{- end }}
  {{- with .Values.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - { name: {{ include "gatepost.inPod" (list . "grpc") }}, containerPort: {{ include "gatepost.listens" (list . "grpc") }}, protocol: TCP }
    - { name: {{ include "gatepost.inPod" (list . "ops") }}, containerPort: {{ include "gatepost.listens" (list . "ops") }}, protocol: TCP }
    {{- if .Values.config.admin }}
    - { name: {{ include "gatepost.inPod" (list . "admin") }}, containerPort: {{ include "gatepost.listens" (list . "admin") }}, protocol: TCP }
    {{- end }}
  startupProbe:
    httpGet: { path: /livez, port: {{ include "gatepost.inPod" (list . "ops") }} }
    {{- toYaml .Values.probes.startup | nindent 4 }}
  livenessProbe:
    httpGet: { path: /livez, port: {{ include "gatepost.inPod" (list . "ops") }} }
    {{- toYaml .Values.probes.liveness | nindent 4 }}
  readinessProbe:
    httpGet: { path: /readyz, port: {{ include "gatepost.inPod" (list . "ops") }} }
    {{- toYaml .Values.probes.readiness | nindent 4 }}
  securityContext:
    {{- include "gatepost.secured" . | nindent 4 }}
    {{- if .Values.sidecar.enabled }}
    {{- /* The pod's own user is the service's. */}}
    {{- with pick .Values.podSecurityContext "runAsUser" "runAsGroup" }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- end }}
  {{- with .Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - { name: {{ include "gatepost.inPod" (list . "config") }}, mountPath: /etc/gatepost/config, readOnly: true }
    {{- if .Values.tls.spiffe.enabled }}
    - { name: {{ include "gatepost.inPod" (list . "spiffe") }}, mountPath: /run/spiffe, readOnly: true }
    {{- else }}
    - { name: {{ include "gatepost.inPod" (list . "tls") }}, mountPath: /etc/gatepost/tls, readOnly: true }
    {{- end }}
    {{- if .Values.config.admin }}
    - { name: {{ include "gatepost.inPod" (list . "admin-tls") }}, mountPath: /etc/gatepost/admin-tls, readOnly: true }
    {{- end }}
    - { name: {{ include "gatepost.inPod" (list . "policies") }}, mountPath: /etc/gatepost/policies, readOnly: true }
    - { name: {{ include "gatepost.inPod" (list . "audit") }}, mountPath: /var/lib/gatepost }
    {{- if .Values.audit.secretName }}
    - { name: {{ include "gatepost.inPod" (list . "audit-keys") }}, mountPath: /etc/gatepost/audit, readOnly: true }
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Pulls the policies, and swaps a link when there are others. It is up once they are there for the first time. */}}
{{- define "gatepost.gitSync" -}}
{{- $git := .Values.policies.gitSync -}}
- name: {{ include "gatepost.inPod" (list . "git-sync") }}
  image: {{ include "gatepost.reference" $git.image | quote }}
  imagePullPolicy: {{ $git.image.pullPolicy }}
  restartPolicy: Always
  env:
    - { name: GITSYNC_REPO, value: {{ $git.repository | quote }} }
    - { name: GITSYNC_REF, value: {{ $git.ref | quote }} }
    - { name: GITSYNC_PERIOD, value: {{ $git.period | quote }} }
    - { name: GITSYNC_ROOT, value: /git }
    - { name: GITSYNC_LINK, value: current }
    - { name: GITSYNC_DEPTH, value: "1" }
    # What was pulled stays in force, however long the repository is away.
    - { name: GITSYNC_MAX_FAILURES, value: "-1" }
    - { name: GITSYNC_HTTP_BIND, value: ":{{ include "gatepost.listens" (list . "gitSync") }}" }
    # git and ssh write here, and nowhere else.
    - { name: HOME, value: /tmp }
    {{- if $git.secretName }}
    {{- if hasPrefix "https://" $git.repository }}
    - { name: GITSYNC_USERNAME, valueFrom: { secretKeyRef: { name: {{ $git.secretName }}, key: username } } }
    - { name: GITSYNC_PASSWORD_FILE, value: /etc/git-secret/password }
    {{- else }}
    - { name: GITSYNC_SSH_KEY_FILE, value: /etc/git-secret/ssh }
    - { name: GITSYNC_SSH_KNOWN_HOSTS_FILE, value: /etc/git-secret/known_hosts }
    {{- end }}
    {{- end }}
    {{- with $git.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - { name: {{ include "gatepost.inPod" (list . "git") }}, containerPort: {{ include "gatepost.listens" (list . "gitSync") }}, protocol: TCP }
  startupProbe:
    httpGet: { path: /, port: {{ include "gatepost.inPod" (list . "git") }} }
    periodSeconds: 1
    failureThreshold: 120
  livenessProbe:
    httpGet: { path: /, port: {{ include "gatepost.inPod" (list . "git") }} }
    periodSeconds: 10
    timeoutSeconds: 2
  securityContext:
    {{- include "gatepost.secured" . | nindent 4 }}
    {{- with $git.runAsUser }}
    runAsUser: {{ int64 . }}
    {{- end }}
  {{- with $git.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - { name: {{ include "gatepost.inPod" (list . "policies") }}, mountPath: /git }
    - { name: {{ include "gatepost.inPod" (list . "git-tmp") }}, mountPath: /tmp }
    {{- if $git.secretName }}
    - { name: {{ include "gatepost.inPod" (list . "git-secret") }}, mountPath: /etc/git-secret, readOnly: true }
    {{- end }}
{{- end -}}
