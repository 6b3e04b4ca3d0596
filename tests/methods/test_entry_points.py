"""Another package's method: the one that docs/writing-a-method.md shows, installed and run as a user would."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.methods.method_cases import make_models
from tests.oracle import load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of packages, with the one of the page in it."""
    folder = tmp_path_factory.mktemp("site")
    page = (ROOT / "docs" / "writing-a-method.md").read_text()
    (folder / "signs.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    (table,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    group, name, value = re.fullmatch(r'\[project\.entry-points\."(.*)"\]\n(\w+) = "(.*)"\n', table).groups()
    points = f"[{group}]\n{name} = {value}\nbroken = signs:NOTHING\nodd = signs:signs\n"
    for file, text in {"METADATA": "Metadata-Version: 2.1\nName: our-signs\nVersion: 1.0\n", "entry_points.txt": points}.items():
        (folder / "our_signs-1.0.dist-info").mkdir(exist_ok=True)
        (folder / "our_signs-1.0.dist-info" / file).write_text(text)
    return folder


def command(site, *arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    return subprocess.run(
        [sys.executable, "-m", "paramdelta_dist", *arguments, "--json"], env=environment, capture_output=True, text=True, check=False
    )


def test_the_method_of_the_page_is_short():
    page = (ROOT / "docs" / "writing-a-method.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20


@pytest.mark.slow
def test_a_method_of_another_package_is_explained_and_runs(site, tmp_path):
    folders = make_models(tmp_path, 3)
    card = json.loads(command(site, "methods", "signs").stdout)
    assert (card["package"], card["parameters"][0]["range"]) == ("our-signs", "a finite number of at least 0")
    recipe = tmp_path / "recipe.yaml"
    posts = ", ".join(f"{{post: {folder}}}" for folder in folders[1:])
    recipe.write_text(f"method: signs\nparameters: {{size: 0.125}}\nbase: {folders[0]}\ndeltas: [{posts}]\noutput: {tmp_path / 'out'}\n")
    made = command(site, "merge", str(recipe))
    assert made.returncode == 0, made.stderr
    base, out, posts = load(folders[0]), load(tmp_path / "out"), [load(folder) for folder in folders[1:]]
    for name in (name for name in base if base[name].is_floating_point()):
        expected = base[name].float() + 0.125 * sum((post[name].float() - base[name].float()).sign() for post in posts)
        assert torch.equal(out[name], expected.bfloat16()), name
    verified = command(site, "verify", str(tmp_path / "out"), "--deep", "--recompute", "1")
    assert json.loads(verified.stdout)["ok"], verified.stderr
    assert "there is no method 'signs'" in command(tmp_path, "methods", "signs").stderr


@pytest.mark.slow
def test_a_method_of_another_package_runs_on_ray(site, tmp_path):
    folders = make_models(tmp_path, 2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: signs\nbase: {folders[0]}\ndeltas: [{{post: {folders[1]}}}]\noutput: {tmp_path / 'out'}\n")
    made = command(site, "merge", str(recipe), "--engine", "ray", "--workers", "1")
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("name", "says"), [("broken", "does not load: AttributeError"), ("odd", "is not a paramdelta_dist.methods.Method")]
)
def test_a_package_whose_card_is_none_is_named(site, name, says):
    done = command(site, "methods", name)
    assert done.returncode == 2
    assert says in done.stderr
    assert "our-signs" in done.stderr
    assert "Traceback" not in done.stderr
