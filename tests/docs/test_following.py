"""The pages that need no cloud, followed command by command."""

import json
import re

import pytest

from tests.clusters import ray_cluster
from tests.docs.pages import DOCS, recipe_files


def test_the_page_of_the_first_merge(reader):
    outputs = reader.follow(DOCS / "start.md")
    assert "nothing to do" in outputs[-1]
    assert sorted(path.name for path in reader.folder.iterdir()) == ["merge.yaml", "merged", "models"]


def test_the_laptop_page(reader):
    outputs = reader.follow(DOCS / "run/laptop.md")
    assert "nothing to do" in outputs[-1]
    assert sorted(path.name for path in reader.folder.iterdir()) == ["half", "llama.yaml", "merge.yaml", "merged", "models"]
    assert outputs[-1].splitlines()[0] == "166,775,808 bytes to read, 55,604,224 to write"


def test_the_page_of_the_recipe(reader):
    reader.follow(DOCS / "recipe.md")
    assert (reader.folder / "llama.yaml").read_text().splitlines()[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert json.loads((reader.folder / "recipe.schema.json").read_text()) == json.loads((DOCS / "recipe.schema.json").read_text())


@pytest.mark.slow
def test_the_page_of_sweeps(reader):
    outputs = reader.follow(DOCS / "sweeps.md")
    points = json.loads((reader.folder / "alpha/sweep.json").read_text())["points"]
    assert [point["name"] for point in points] == [f"weight={value}" for value in ("0", "0.5", "0.75", "1.0", "1.25")]
    assert "a sweep of 5 points" in outputs[0]


@pytest.mark.slow
def test_the_nightly_page(reader):
    output = "".join(reader.follow(DOCS / "run/nightly.md"))
    folders = sorted(path.name for path in (reader.folder / "nightly").iterdir() if not path.name.startswith("."))
    assert len(folders) == 2, "the page prunes all but the newest"
    assert folders[-1] == "latest.json"
    assert "1 output found, none removed" in output
    assert "1 output removed" in output
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d-[0-9a-f]{12}", name) for name in folders[:-1])
    assert '"state": "nothing to do"' in output
    pointer = json.loads((reader.folder / "nightly/latest.json").read_text())
    assert f"\n{pointer['output']}\n" in output
    shown = next(text for text in (DOCS / "run/nightly.md").read_text().split("```") if text.startswith("json"))
    assert json.loads(shown.removeprefix("json")).keys() == pointer.keys()


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster({}) as started:
        yield started


@pytest.mark.slow
def test_the_page_of_the_ray_cluster(reader, cluster):
    output = "".join(reader.follow(DOCS / "run/ray-cluster.md", {"RAY_ADDRESS": cluster.dashboard, "RAY_AUTH_MODE": "disabled"}))
    assert "merged into" in output
    assert '"state": "nothing to do"' in output
    job = re.search(r"^(pdd-[0-9a-f]{12}-1)\b", output, re.M)[1]
    assert f"job {job} was over already: succeeded" in output
    assert (reader.folder / "merged/config.json").exists()
    assert (reader.folder / "again/config.json").exists()


@pytest.mark.slow
def test_a_nightly_recipe_can_be_submitted_and_the_second_time_starts_no_job(reader, cluster):
    reader.environ |= {"RAY_ADDRESS": cluster.dashboard, "RAY_AUTH_MODE": "disabled"}
    (reader.folder / "nightly.yaml").write_text(recipe_files(DOCS / "run/nightly.md")["nightly.yaml"])
    first = reader.run("paramdelta-dist demo models --engine local && paramdelta-dist submit nightly.yaml --json")
    assert first.returncode == 0, first.stderr
    pointer = json.loads((reader.folder / "nightly/latest.json").read_text())
    assert re.fullmatch(r".*/nightly/\d{4}-\d\d-\d\d-[0-9a-f]{12}", pointer["output"])
    (reader.folder / "nightly/latest.json").unlink()
    second = reader.run("paramdelta-dist submit nightly.yaml --json")
    assert second.returncode == 0, second.stderr
    document = json.loads(second.stdout)
    assert (document["state"], document["job"], document["output"]) == ("nothing to do", None, pointer["output"])
    assert json.loads((reader.folder / "nightly/latest.json").read_text()) == pointer
