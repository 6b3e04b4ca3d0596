"""What KubeRay 1.6 takes: the fields of its RayJob and RayCluster that we use and their neighbours, and rules of its validation."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.34"

_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_FLAG = {"type": "boolean"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_FREE = {"type": "object"}
"""Parts that Kubernetes' own schema describes; pod templates are held against it below."""


def _strict(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_GROUP = {"rayStartParams": _TEXTS, "template": _FREE, "labels": _TEXTS, "resources": _TEXTS}
CLUSTER_SPEC = _strict(
    ("headGroupSpec",),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions=_strict(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=_COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources=_FREE,
        securityContext=_FREE,
        image=_TEXT,
        imagePullPolicy=_TEXT,
        env={"type": "array"},
        envFrom={"type": "array"},
        volumeMounts={"type": "array"},
    ),
    authOptions=_strict(mode={"enum": ["disabled", "token"]}, secretName=_TEXT),
    gcsFaultToleranceOptions=_FREE,
    headServiceAnnotations=_TEXTS,
    managedBy=_TEXT,
    suspend=_FLAG,
    headGroupSpec=_strict(("template",), enableIngress=_FLAG, headService=_FREE, serviceType=_TEXT, **_GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": _strict(
            ("groupName", "minReplicas", "maxReplicas", "template"),
            groupName=_TEXT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            replicas=_COUNT,
            numOfHosts=_COUNT,
            idleTimeoutSeconds=_COUNT,
            suspend=_FLAG,
            scaleStrategy=_FREE,
            **_GROUP,
        ),
    },
)
JOB_SPEC = _strict(
    (),
    entrypoint=_TEXT,
    runtimeEnvYAML=_TEXT,
    jobId=_TEXT,
    metadata=_TEXTS,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=_TEXT,
    rayClusterSpec=CLUSTER_SPEC,
    clusterSelector=_TEXTS,
    submitterPodTemplate=_FREE,
    submitterConfig=_strict(backoffLimit=_COUNT),
    backoffLimit=_COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    suspend=_FLAG,
    deletionStrategy=_strict(
        ("deletionRules",),
        deletionRules={
            "type": "array",
            "minItems": 1,
            "items": _strict(
                ("policy", "condition"),
                policy={"enum": ["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]},
                condition=_strict(
                    (), jobStatus={"enum": ["SUCCEEDED", "FAILED"]}, jobDeploymentStatus={"enum": ["Failed"]}, ttlSeconds=_COUNT
                ),
            ),
        },
    ),
    managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
)
LONGEST_NAME = {"RayJob": 47, "RayCluster": 53}


def validate(document: dict[str, Any]) -> None:
    """Raises an exception that says what KubeRay, or Kubernetes behind it, would refuse."""
    kind, spec = document["kind"], document["spec"]
    assert document["apiVersion"] == "ray.io/v1"
    name = document["metadata"]["name"]
    assert len(name) <= LONGEST_NAME[kind], f"{kind} {name}: KubeRay takes at most {LONGEST_NAME[kind]} characters"
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), name
    jsonschema.validate(spec, {"RayJob": JOB_SPEC, "RayCluster": CLUSTER_SPEC}[kind])
    if kind == "RayJob":
        _validate_job(spec)
        spec = spec["rayClusterSpec"]
    for group in groups(spec):
        _validate_group(group, spec)
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert len(set(names)) == len(names), names


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def _validate_job(spec: dict[str, Any]) -> None:
    assert ("rayClusterSpec" in spec) != ("clusterSelector" in spec), "either a cluster of its own or one that is there"
    shut = spec.get("shutdownAfterJobFinishes", False)
    assert shut or not spec.get("ttlSecondsAfterFinished"), "a time to live needs shutdownAfterJobFinishes"
    assert shut or not spec.get("suspend"), "suspend needs shutdownAfterJobFinishes"
    assert not (shut and "deletionStrategy" in spec), "deletionStrategy and shutdownAfterJobFinishes exclude each other"
    for rule in spec.get("deletionStrategy", {}).get("deletionRules", ()):
        assert ("jobStatus" in rule["condition"]) != ("jobDeploymentStatus" in rule["condition"]), "a rule has one of the two"
        assert not (rule["policy"] == "DeleteWorkers" and spec["rayClusterSpec"].get("enableInTreeAutoscaling")), "the autoscaler does that"
    assert not (spec.get("backoffLimit") and "clusterSelector" in spec), "a retry makes a new cluster"
    if spec.get("submissionMode") == "InteractiveMode":
        assert "entrypoint" not in spec
        assert not spec.get("backoffLimit")
    if spec.get("submissionMode") == "SidecarMode":
        assert not {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec), "the sidecar is KubeRay's own"
        assert spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].get("restartPolicy") == "Never"


def _validate_group(group: dict[str, Any], spec: dict[str, Any]) -> None:
    assert "labels" not in group["rayStartParams"], "labels have a field of their own"
    pod = group["template"]["spec"]
    if spec.get("autoscalerOptions", {}).get("version") == "v2":
        assert pod.get("restartPolicy", "Never") == "Never", "version 2 of the autoscaler restarts pods itself"
    assert pod["containers"][0]["name"].startswith("ray-"), "Ray's container comes first"
    assert group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0)
    template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": group["template"]}
    kubernetes_validate.validate(template, KUBERNETES, strict=True)
