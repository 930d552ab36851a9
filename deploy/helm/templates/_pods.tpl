{{/* Made by `python scripts/helm_chart.py`; a test keeps it so. */}}
{{- /* YAML 1.1, in which Helm reads its values, takes the key n for false. */}}
{{- define "sluice.n" }}
{{- if hasKey . "false" }}{{ $_ := set . "n" (dig "n" (get . "false") .) }}{{ $_ := unset . "false" }}{{ end }}
{{- end }}
{{- define "sluice.recipe" -}}
{{- $recipe := deepCopy .Values.recipe }}
{{- range $section := list (dig "rollout" dict $recipe) (dig "eval" dict $recipe) }}{{ include "sluice.n" $section }}{{ end }}
{{- range $name, $set := dig "eval" "sets" dict $recipe }}{{ include "sluice.n" $set }}{{ end }}
{{- toYaml $recipe }}
{{- end }}

{{- define "sluice.control_pod" -}}
# The control pod: `sluice up` with Redis, coordinator and the learner's first machine. Rollouts and rewards register with it.
metadata:
  labels:
    app.kubernetes.io/name: sluice
    app.kubernetes.io/instance: {{ .Release.Name }}
    app.kubernetes.io/component: control
  annotations: {prometheus.io/scrape: "true", prometheus.io/port: "19050"}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: {{ add (mul 2 (int .Values.recipe.launch.grace_s)) 20 }}
  serviceAccountName: {{ .Release.Name }}
  automountServiceAccountToken: true
  enableServiceLinks: false # a Service called sluice would set SLUICE_PORT
  shareProcessNamespace: true # for its first process, which reaps what a killed process leaves behind
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  initContainers:
  - name: prepare
    image: {{ .Values.recipe.kubernetes.images }}launcher{{ if .Values.recipe.kubernetes.gpu }}-cuda{{ end }}:{{ .Values.recipe.kubernetes.tag }}
    command: [sh, -euc]
    args: [{{ .Values.recipe.kubernetes.prepare | toJson }}]
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: tmp, mountPath: /tmp}
  containers:
  - name: control
    image: {{ .Values.recipe.kubernetes.images }}launcher{{ if .Values.recipe.kubernetes.gpu }}-cuda{{ end }}:{{ .Values.recipe.kubernetes.tag }}
    command: [python, -m, sluice.cli.in_pod]
    args: [up, -c, /config/recipe.yaml, --plain, --run-dir, {{ (.Values.runDir | default (printf "/data/runs/%s" .Release.Name)) }}]
    env:
    - {name: SLUICE__NETWORK__BIND, value: 0.0.0.0}
    - {name: SLUICE__NETWORK__ADVERTISE, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: SLUICE__NETWORK__COORDINATOR_PORT, value: "18050"}
    - {name: SLUICE__NETWORK__CREDENTIALS, value: /credentials}
    - {name: SLUICE__LAUNCH__ENGINE, value: local}
    - {name: SLUICE__LAUNCH__LEARNER_RDZV_ENDPOINT, value: "{{ .Release.Name }}:29400"}
    - {name: SLUICE__LAUNCH__READY_TIMEOUT_S, value: "1800"} # images are pulled and nodes are found meanwhile
    - {name: SLUICE_DEPLOYMENTS, value: {{ .Release.Name }}} # rollouts and rewards; `sluice scale` sets their replicas
    - {name: SLUICE_COORDINATOR, value: "127.0.0.1:18050"} # for `kubectl exec ... sluice status`
    - {name: SLUICE_CREDENTIALS, value: /credentials/operator}
    ports:
    - {name: grpc, containerPort: 18050}
    - {name: metrics, containerPort: 19050}
    readinessProbe: # the launcher itself finds what dies or hangs in this pod
      exec: {command: [env, SLUICE_CREDENTIALS=/credentials/coordinator, python, -m, sluice.rpc.probe, "127.0.0.1:18050"]}
      periodSeconds: 30
      timeoutSeconds: 30
    resources: {{ if .Values.recipe.kubernetes.gpu }}{"limits": { {{ .Values.recipe.kubernetes.gpu | toJson }}: {{ int .Values.recipe.launch.learner_nproc_per_node }} }}{{ else }}{}{{ end }}
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts:
    - {name: recipe, mountPath: /config, readOnly: true}
    - {name: data, mountPath: /data}
    - {name: coordinator, mountPath: /credentials/coordinator, readOnly: true}
    - {name: learner, mountPath: /credentials/learner, readOnly: true}
    - {name: operator, mountPath: /credentials/operator, readOnly: true}
    - {name: tmp, mountPath: /tmp}
    - {name: shm, mountPath: /dev/shm}
  volumes:
  - {name: recipe, configMap: {name: {{ .Release.Name }}}}
  - {name: data, persistentVolumeClaim: {claimName: {{ .Values.recipe.kubernetes.claim | default (printf "%s-data" .Release.Name) }}}}
  - {name: coordinator, secret: {secretName: {{ .Values.recipe.kubernetes.credentials }}-coordinator, defaultMode: 288}}
  - {name: learner, secret: {secretName: {{ .Values.recipe.kubernetes.credentials }}-learner, defaultMode: 288}}
  - {name: operator, secret: {secretName: {{ .Values.recipe.kubernetes.credentials }}-operator, defaultMode: 288}}
  - {name: tmp, emptyDir: {}}
  - {name: shm, emptyDir: {medium: Memory}}
{{- end }}

{{- define "sluice.machine_pod" -}}
# A further machine of the learner: its ranks join those of the control pod, round after round, until the run has ended.
metadata:
  labels:
    app.kubernetes.io/name: sluice
    app.kubernetes.io/instance: {{ .Release.Name }}
    app.kubernetes.io/component: learner
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: {{ add (int .Values.recipe.launch.grace_s) 20 }}
  automountServiceAccountToken: false
  enableServiceLinks: false # a Service called sluice would set SLUICE_PORT
  shareProcessNamespace: true # for its first process, which reaps what a killed process leaves behind
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  containers:
  - name: learner
    image: {{ .Values.recipe.kubernetes.images }}learner{{ if .Values.recipe.kubernetes.gpu }}-cuda{{ end }}:{{ .Values.recipe.kubernetes.tag }}
    command: [sh, -euc]
    args:
    - >-
      exec sluice learner-node --rdzv-endpoint {{ .Release.Name }}:29400 --rdzv-id {{ base (.Values.runDir | default (printf "/data/runs/%s" .Release.Name)) }} --nnodes {{ int .Values.recipe.launch.learner_nnodes }}
      --node-rank $((JOB_COMPLETION_INDEX + 1)) --nproc-per-node {{ int .Values.recipe.launch.learner_nproc_per_node }} --timeout-s 1800
    resources: {{ if .Values.recipe.kubernetes.gpu }}{"limits": { {{ .Values.recipe.kubernetes.gpu | toJson }}: {{ int .Values.recipe.launch.learner_nproc_per_node }} }}{{ else }}{}{{ end }}
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: tmp, mountPath: /tmp}
    - {name: shm, mountPath: /dev/shm}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: {{ .Values.recipe.kubernetes.claim | default (printf "%s-data" .Release.Name) }}}}
  - {name: tmp, emptyDir: {}}
  - {name: shm, emptyDir: {medium: Memory}}
{{- end }}

{{- define "sluice.ray_pod" -}}
enableServiceLinks: false # a Service called sluice would set SLUICE_PORT
shareProcessNamespace: true # for its first process, which reaps what a killed process leaves behind
automountServiceAccountToken: false
terminationGracePeriodSeconds: {{ add (mul 2 (int .Values.recipe.launch.grace_s)) 20 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
volumes:
- {name: recipe, configMap: {name: {{ .Release.Name }}}}
- {name: data, persistentVolumeClaim: {claimName: {{ .Values.recipe.kubernetes.claim | default (printf "%s-data" .Release.Name) }}}}
- {name: coordinator, secret: {secretName: {{ .Values.recipe.kubernetes.credentials }}-coordinator, defaultMode: 288}}
- {name: learner, secret: {secretName: {{ .Values.recipe.kubernetes.credentials }}-learner, defaultMode: 288}}
- {name: operator, secret: {secretName: {{ .Values.recipe.kubernetes.credentials }}-operator, defaultMode: 288}}
- {name: rollout, secret: {secretName: {{ .Values.recipe.kubernetes.credentials }}-rollout, defaultMode: 288}}
- {name: reward, secret: {secretName: {{ .Values.recipe.kubernetes.credentials }}-reward, defaultMode: 288}}
- {name: tmp, emptyDir: {}}
- {name: shm, emptyDir: {medium: Memory}}
{{- end }}

{{- define "sluice.ray_container" -}}
image: {{ .Values.recipe.kubernetes.images }}ray{{ if .Values.recipe.kubernetes.gpu }}-cuda{{ end }}:{{ .Values.recipe.kubernetes.tag }}
env:
- {name: SLUICE__NETWORK__BIND, value: auto}
- {name: SLUICE__NETWORK__ADVERTISE, value: auto}
- {name: SLUICE__NETWORK__COORDINATOR_PORT, value: "18050"}
- {name: SLUICE__NETWORK__CREDENTIALS, value: /credentials}
- {name: SLUICE_CREDENTIALS, value: /credentials/operator} # for `kubectl exec ... sluice status`
securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
volumeMounts:
- {name: recipe, mountPath: /config, readOnly: true}
- {name: data, mountPath: /data}
- {name: coordinator, mountPath: /credentials/coordinator, readOnly: true}
- {name: learner, mountPath: /credentials/learner, readOnly: true}
- {name: operator, mountPath: /credentials/operator, readOnly: true}
- {name: rollout, mountPath: /credentials/rollout, readOnly: true}
- {name: reward, mountPath: /credentials/reward, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- end }}
