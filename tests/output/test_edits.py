"""The card is for the Hub and for people: it tells nothing of this machine, and who edits it has a finished merge all the same."""

import json
import os
import re

import pytest
import yaml

from paramdelta_dist.checkpoint.sidefiles import is_for_people
from tests.models import ARCHITECTURES, make_models
from tests.terminal import call


@pytest.fixture
def finished(tmp_path):
    """A folder with a recipe and its finished output `out`, with a licence."""
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    (new / "LICENSE").write_text("do as you like\n")
    (tmp_path / "r.yaml").write_text(f"base: {new}\ndeltas: [{{post: {post}, base: {old}}}]\noutput: {tmp_path / 'out'}\n")
    done = call("merge", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_the_card_names_models_of_the_hub_alone_and_no_path_of_this_machine(finished):
    card = (finished / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["base_model"], front["base_model_relation"]) == ([], "merge")
    assert str(finished) not in card
    assert os.path.expanduser("~") not in card
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert recipe["base"] == "new"
    assert recipe["deltas"] == [{"post": "post", "base": "old", "weight": 1.0}]
    assert recipe["output"] == "out"


@pytest.mark.parametrize("deed", ["edited", "same size", "removed"])
@pytest.mark.parametrize("name", ["README.md", "LICENSE"])
def test_what_people_edit_is_no_damage(finished, name, deed):
    file = finished / "out" / name
    text = file.read_text()
    file.unlink()
    if deed != "removed":
        file.write_text(text.swapcase() if deed == "same size" else text + "and more\n")
    told = deed != "same size"  # what only reading it can tell is told by `verify --deep`
    again = call("merge", "r.yaml", cwd=finished)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout
    assert (name in again.stdout) == told
    status = json.loads(call("status", "out", "--json", cwd=finished).stdout)
    assert (status["state"], status.get("edited", [])) == ("complete", [name] if told else [])
    for options in ([], ["--deep"]):
        done = call("verify", "out", *options, "--json", cwd=finished)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert (document["ok"], document["edited"]) == (True, [name] if told or options else [])
    assert f"note: {name} is not as it was written" in call("verify", "out", "--deep", cwd=finished).stdout


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_edit_of_the_model_is_damage(finished, name):
    with open(finished / "out" / name, "ab") as file:
        file.write(b" ")
    assert call("merge", "r.yaml", cwd=finished).returncode == 5
    assert json.loads(call("status", "out", "--json", cwd=finished).stdout)["damaged"] == [name]
    assert call("verify", "out", cwd=finished).returncode == 5


def test_which_files_are_for_people():
    for name in ("README.md", ".gitattributes", "LICENSE", "license.txt", "Notice", "USE_POLICY.md", "figures/loss.PNG", "COPYING"):
        assert is_for_people(name), name
    for name in ("vocab.txt", "merges.txt", "config.json", "model.safetensors", "tokenizer.model", "chat_template.jinja", "license.py"):
        assert not is_for_people(name), name
