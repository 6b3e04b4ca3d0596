"""What kustomize makes of deploy/kubernetes is what KubeRay and Kubernetes take, and is safe and cheap to run."""

import copy
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy import kuberay
from tests.deploy.files import DEPLOY, IMAGE, load
from tests.deploy.kustomize import build

FOLDER = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())


def made(overlay):
    """Documents by kind."""
    documents = build(FOLDER / "overlays" / overlay)
    by_kind = {each["kind"]: each for each in documents}
    assert len(by_kind) == len(documents)
    return by_kind


def ray_of(documents):
    return documents["RayJob"]["spec"]["rayClusterSpec"] if "RayJob" in documents else documents["RayCluster"]["spec"]


def pods(documents):
    """Specs of all pods by a name."""
    ray = ray_of(documents)
    found = {"head": ray["headGroupSpec"]["template"]["spec"], "worker": ray["workerGroupSpecs"][0]["template"]["spec"]}
    if "CronJob" in documents:
        found["submit"] = documents["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return found


def test_every_cloud_has_both_ways():
    assert OVERLAYS == ["eks-job", "eks-nightly", "gke-job", "gke-nightly"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_makes_of_it_what_the_tests_look_at(overlay):
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on this machine; what these tests build themselves is not compared with it")
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    assert {each["kind"]: each for each in yaml.safe_load_all(done.stdout)} == made(overlay)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_and_kubernetes_take_every_document(overlay):
    for kind, document in made(overlay).items():
        if kind.startswith("Ray"):
            kuberay.validate(document)
        else:
            kubernetes_validate.validate(document, kuberay.KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("entrypont",), "x"),
        (("ttlSecondsAfterFinished",), 600),
        (("shutdownAfterJobFinishes",), True),
        (("deletionStrategy", "deletionRules", 0, "condition", "ttlSeconds"), "600"),
        (("deletionStrategy", "deletionRules", 0, "condition", "jobDeploymentStatus"), "Failed"),
        (("deletionStrategy", "deletionRules", 0, "policy"), "DeleteWorkers"),
        (("submitterConfig",), {"backoffLimit": 1}),
        (("rayClusterSpec", "workerGroupSpecs", 0, "minReplica"), 1),
        (("rayClusterSpec", "workerGroupSpecs", 0, "replicas"), 9),
        (("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "restartPolicy"), "Always"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "serviceAcountName"), "x"),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "limits"), ["8Gi"]),
    ],
)
def test_a_mistake_in_a_ray_job_is_found(way, value):
    document = copy.deepcopy(made("eks-job")["RayJob"])
    at = document["spec"]
    for part in way[:-1]:
        at = at[part]
    at[way[-1]] = value
    with pytest.raises((AssertionError, jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        kuberay.validate(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_run_as_nobody_special_and_end_in_good_order(overlay):
    documents = made(overlay)
    for name, pod in pods(documents).items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000, "as in the image"
        short = name == "worker" and overlay.startswith("gke")  # a spot machine there is gone after 30 s, of which pods have 15
        assert pod["terminationGracePeriodSeconds"] == (15 if short else 120)
        assert pod["priorityClassName"] == documents["PriorityClass"]["metadata"]["name"]
        assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["image"].startswith(IMAGE + ":")
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        if name != "head":  # where the autoscaler talks to Kubernetes
            assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_workers_are_on_spot_and_only_while_there_is_work(overlay):
    documents = made(overlay)
    label = {"eks": "eks.amazonaws.com/capacityType", "gke": "cloud.google.com/gke-spot"}[overlay[:3]]
    for name, pod in pods(documents).items():
        if name == "worker":
            assert label in pod["nodeSelector"]
            assert pod["tolerations"]
        else:
            [term] = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            assert (term["matchExpressions"][0]["key"], term["matchExpressions"][0]["operator"]) == (label, "NotIn")
            assert "tolerations" not in pod
    ray = ray_of(documents)
    assert ray["enableInTreeAutoscaling"] is True
    assert ray["workerGroupSpecs"][0]["minReplicas"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_act_as_an_identity_of_the_cloud(overlay):
    documents = made(overlay)
    annotation = {"eks": "eks.amazonaws.com/role-arn", "gke": "iam.gke.io/gcp-service-account"}[overlay[:3]]
    assert documents["ServiceAccount"]["metadata"]["annotations"][annotation]
    if overlay.startswith("gke"):
        assert all("iam.gke.io/gke-metadata-server-enabled" in pod["nodeSelector"] for pod in pods(documents).values())
    assert "Secret" not in documents


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_gives_its_memory_and_cores_to_workers_and_asks_for_a_token(overlay):
    ray = ray_of(made(overlay))
    assert ray["authOptions"] == {"mode": "token"}
    assert ray["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert {group["rayStartParams"]["object-store-memory"] for group in kuberay.groups(ray)} == {"268435456"}
    [workers] = ray["workerGroupSpecs"]
    assert workers["rayStartParams"]["num-cpus"] == workers["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]


def test_ray_has_the_version_of_the_image():
    pinned = [line for line in (DEPLOY / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    for overlay in OVERLAYS:
        assert [f"ray=={ray_of(made(overlay))['rayVersion']}"] == pinned


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_recipe_is_where_the_command_looks_for_it_and_is_one(overlay):
    from paramdelta_dist.recipe.model import Recipe

    documents = made(overlay)
    [(name, text)] = documents["ConfigMap"]["data"].items()
    recipe = Recipe.model_validate(yaml.safe_load(text))
    assert "{inputs}" in recipe.output, "changed inputs of a night make a new output"
    found = pods(documents)
    pod = found.get("submit", found["head"])
    for container in (*pod.get("initContainers", ()), pod["containers"][0]):
        [mount] = [each for each in container["volumeMounts"] if each["name"] == "recipe"]
        command = documents["RayJob"]["spec"]["entrypoint"].split() if "RayJob" in documents else container["command"]
        assert f"{mount['mountPath']}/{name}" in command
    assert {"name": "recipe", "configMap": {"name": documents["ConfigMap"]["metadata"]["name"]}} in pod["volumes"]


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.endswith("job")])
def test_a_job_and_its_cluster_do_not_stay(overlay):
    spec = made(overlay)["RayJob"]["spec"]
    rules = {tuple(rule["condition"].values()): rule["policy"] for rule in spec["deletionStrategy"]["deletionRules"]}
    assert rules == {("SUCCEEDED", 600): "DeleteCluster", ("Failed", 86400): "DeleteCluster"}, "logs of a failure are there for a day"
    assert spec["activeDeadlineSeconds"] <= 86400
    assert spec["backoffLimit"] >= 1
    assert spec["submissionMode"] == "SidecarMode"


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.endswith("nightly")])
def test_nights_do_not_overlap_and_fail_only_for_what_the_next_attempt_cannot_mend(overlay):
    documents = made(overlay)
    spec = documents["CronJob"]["spec"]
    job = spec["jobTemplate"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["timeZone"]
    assert job["ttlSecondsAfterFinished"] > 0
    [pod] = [job["template"]["spec"]]
    assert pod["restartPolicy"] == "Never", "a podFailurePolicy needs it"
    [rule] = [rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert "containerName" not in rule["onExitCodes"], "whichever of the two fails"
    assert set(rule["onExitCodes"]["values"]) == {2, 3, 4, 5}
    [submit], [prune] = pod["initContainers"], pod["containers"]
    command = submit["command"]
    cluster = documents["RayCluster"]["metadata"]["name"]
    assert command[command.index("--address") + 1] == f"http://{cluster}-head-svc:8265"
    [token] = [each for each in submit["env"] if each["name"] == "RAY_AUTH_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": cluster, "key": "auth_token"}
    assert prune["command"][:3] == ["paramdelta-dist", "prune", "--recipe"]
    assert int(prune["command"][prune["command"].index("--keep") + 1]) > 1
    assert "--yes" in prune["command"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_moves_the_head_to_save_a_node(overlay):
    documents = made(overlay)
    head = ray_of(documents)["headGroupSpec"]["template"]["metadata"]
    assert head["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    budget = documents["PodDisruptionBudget"]["spec"]
    assert budget["minAvailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= head["labels"].items()
    assert documents["PodDisruptionBudget"]["metadata"]["namespace"] == documents["Namespace"]["metadata"]["name"]
    assert "metadata" not in ray_of(documents)["workerGroupSpecs"][0]["template"], "workers may be moved at any time"


def test_what_a_user_edits_is_in_few_places():
    settings = load(FOLDER / "settings/kustomization.yaml")
    assert settings["images"][0]["name"] == IMAGE
    for path in FOLDER.rglob("*.yaml"):
        text = path.read_text()
        if path.parent.name != "settings":
            assert f"{IMAGE}:" not in text, f"{path} names a version"
            assert "namespace: " not in text, path
