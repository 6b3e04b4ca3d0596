"""What is copied and not merged is compared before any work: `check` and `plan` tell that integers differ, and the way out works."""

import re
from dataclasses import replace

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.checkpoint import exact
from paramdelta_dist.checkpoint.room import PLANNING, Room
from paramdelta_dist.checkpoint.tokenizer import Tokenizers
from paramdelta_dist.driver.open_inputs import check_models, open_models
from paramdelta_dist.errors import CheckpointError, HomologyError, NonFinite, OverBudget
from paramdelta_dist.planning.memory import RESERVED
from paramdelta_dist.storage import StorageConfig, open_store
from tests import oracle
from tests.models import recipe, save_model

NAMES = ("new", "post", "old")


def models(root, own, common=None):
    """new, post and old with a merged weight each, what all have, and what each has of its own."""
    folders = []
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        folders.append(save_model(root / name, {"m.weight": torch.randn(4, 4), **(common or {}), **own.get(name, {})}))
    return folders


def goes_the_way_that_is_offered(folders, output, **more):
    """Refused by check, plan and merge alike, before anything is written; then merged with the `exclude` of the message."""
    report = api.check(recipe(*folders, output, **more))
    assert report.mismatches
    for verb in (api.plan, api.merge):
        with pytest.raises(HomologyError):
            verb(recipe(*folders, output, **more))
    assert not output.exists()
    globs = [glob for found in report.mismatches for glob in re.findall(r"'([^']+)'", re.search(r"`exclude: \[(.*)\]`", found.remedy)[1])]
    api.merge(recipe(*folders, output, exclude=globs, **more))
    return oracle.load(output)


@pytest.mark.parametrize("other", ["post", "old"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool])
def test_integers_that_differ_are_told_by_check_and_plan(tmp_path, other, dtype):
    own = {name: {"a.table": torch.tensor([[0, 1], [1, name == other]]).to(dtype)} for name in NAMES}
    folders = models(tmp_path, own)
    [found] = api.check(recipe(*folders, tmp_path / "out")).mismatches
    assert (found.model, found.subject) == (str(tmp_path / other), "integers")
    assert "'a.table'" in found.problem
    assert torch.equal(goes_the_way_that_is_offered(folders, tmp_path / "out")["a.table"], own["new"]["a.table"])


def test_one_line_tells_of_many_and_offers_a_glob_that_leaves_out_nothing_else(tmp_path):
    own = {name: {f"layers.{n}.gate.tid2eid": torch.full((3,), n + (name == "post")) for n in range(200)} for name in NAMES}
    folders = models(tmp_path, own, {"other.weight": torch.ones(2)})
    [found] = api.check(recipe(*folders, tmp_path / "out")).mismatches
    assert "200 tensors" in found.problem
    assert "`exclude: ['*.tid2eid']`" in found.remedy
    assert goes_the_way_that_is_offered(folders, tmp_path / "out")["layers.7.gate.tid2eid"].tolist() == [7, 7, 7]


def test_names_that_end_like_what_is_merged_are_left_out_one_by_one(tmp_path):
    own = {name: {"codes[0].weight": torch.full((3,), name == "post", dtype=torch.int64)} for name in NAMES}
    got = goes_the_way_that_is_offered(models(tmp_path, own), tmp_path / "out")
    new, post, old = (oracle.load(tmp_path / name)["m.weight"] for name in NAMES)
    assert torch.allclose(got["m.weight"], new + post - old, atol=1e-5)


@pytest.mark.parametrize("place", [0, -1, 100_000])
def test_of_a_large_tensor_places_all_over_it_are_looked_at_and_the_merge_sees_the_rest(tmp_path, place):
    table = torch.zeros(200_000, dtype=torch.int64)
    changed = table.clone()
    changed[place] = 1
    folders = models(tmp_path, {name: {"a.table": changed if name == "post" else table} for name in NAMES})
    if place in (0, -1):
        assert goes_the_way_that_is_offered(folders, tmp_path / "out")["a.table"].sum() == 0
        return
    report = api.check(recipe(*folders, tmp_path / "out"))
    assert not report.mismatches
    assert any("compared in places" in note for note in report.notes)
    with pytest.raises(CheckpointError, match="`exclude`"):
        api.merge(recipe(*folders, tmp_path / "out"))
    api.merge(recipe(*folders, tmp_path / "out", exclude="a.table"), overwrite=True)


def test_equal_integers_of_another_width_are_refused_early_too(tmp_path):
    own = {name: {"a.table": torch.arange(4).to(torch.int32 if name == "old" else torch.int64)} for name in NAMES}
    folders = models(tmp_path, own)
    assert "I32 and I64" in api.check(recipe(*folders, tmp_path / "out")).mismatches[0].problem
    assert goes_the_way_that_is_offered(folders, tmp_path / "out")["a.table"].dtype == torch.int64


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (torch.ones(4), torch.ones(4, dtype=torch.int64), "floating-point numbers in one model and integers in another"),
        (torch.ones(4, dtype=torch.complex64), torch.ones(4, dtype=torch.complex64), "is complex"),
    ],
)
def test_what_can_be_neither_merged_nor_copied_is_told_by_check(tmp_path, ours, theirs, says):
    folders = models(tmp_path, {name: {"a.odd": theirs if name == "post" else ours} for name in NAMES})
    [found] = api.check(recipe(*folders, tmp_path / "out")).mismatches
    assert found.subject == "dtypes"
    assert says in found.problem
    assert torch.equal(goes_the_way_that_is_offered(folders, tmp_path / "out")["a.odd"], ours)


def test_what_the_recipe_leaves_out_or_no_weight_makes_necessary_is_not_asked_about(tmp_path):
    folders = models(tmp_path, {name: {"a.table": torch.tensor([name == "post"])} for name in NAMES})
    for more in ({"exclude": "*.table"}, {"include": "m.*"}, {"weight": 0.0}):
        api.merge(recipe(*folders, tmp_path / f"out{len(more)}{next(iter(more))}", **more))
    sweep = recipe(
        *folders, tmp_path / "sweep", sweep={"deltas.0.weight": [0.0, 1.0]}, deltas=({"post": str(folders[1]), "base": str(folders[2])},)
    )
    assert [found.subject for found in api.check(sweep).mismatches] == ["integers"]


def test_a_model_with_more_than_are_looked_at_is_compared_in_part_and_says_so(tmp_path):
    folders = models(tmp_path, {}, {f"t{n}.table": torch.arange(3) for n in range(exact.MOST + 3)})
    assert any(note.startswith("3 tensors of integers") for note in api.check(recipe(*folders, tmp_path / "out")).notes)


def test_comparing_takes_its_place_in_the_memory_of_the_plan(tmp_path):
    made = recipe(*models(tmp_path, {}, {"a.table": torch.arange(3)}), tmp_path / "out")
    opened = open_models(made)
    full = replace(opened, tokenizers=Tokenizers(made.storage_config, Room(RESERVED)))
    full.room.take(RESERVED - PLANNING - (1 << 20), "what is known of other models")
    with pytest.raises(OverBudget, match="comparing integer tensors"):
        check_models(made, full)


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_integers_are_compared_wherever_the_models_lie(tmp_path, place, request, monkeypatch):
    if place == "s3":
        server = request.getfixturevalue("s3_server")
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
    root = f"s3://{server.make_bucket()}" if place == "s3" else "memory://exact"
    models(tmp_path, {name: {"a.table": torch.tensor([name == "old"])} for name in NAMES})
    for name in NAMES:
        store = open_store(f"{root}/{name}", StorageConfig())
        for path in (tmp_path / name).iterdir():
            store.write(path.name, path.read_bytes())
    report = api.check(recipe(*(f"{root}/{name}" for name in NAMES), tmp_path / "out"))
    assert [(found.model, found.subject) for found in report.mismatches] == [(f"{root}/old", "integers")]


def test_a_merge_whose_models_are_not_finite_still_fails_for_what_weights_alone_show(tmp_path):
    folders = models(tmp_path, {"post": {"m.weight": torch.full((4, 4), torch.inf)}}, {"a.table": torch.arange(3)})
    assert not api.check(recipe(*folders, tmp_path / "out")).mismatches
    with pytest.raises(NonFinite):
        api.merge(recipe(*folders, tmp_path / "out"))


@pytest.mark.parametrize("name", ["bn.num_batches_tracked", "global_step", "ema.num_updates", "a.step"])
def test_counters_that_differ_are_the_bases_and_check_says_which(tmp_path, name):
    folders = models(tmp_path, {each: {name: torch.tensor(number)} for number, each in enumerate(NAMES)})
    report = api.check(recipe(*folders, tmp_path / "out"))
    assert not report.mismatches
    told = [note for note in report.notes if "count steps" in note]
    assert [note.partition(": ")[0] for note in told] == [str(tmp_path / "post"), str(tmp_path / "old")]
    assert all(f"'{name}'" in note for note in told)
    api.merge(recipe(*folders, tmp_path / "out"))
    assert oracle.load(tmp_path / "out")[name] == 0


def test_a_table_with_the_name_of_a_counter_is_none(tmp_path):
    folders = models(tmp_path, {name: {"noise.steps": torch.tensor([1, name == "post"])} for name in NAMES})
    assert [found.subject for found in api.check(recipe(*folders, tmp_path / "out")).mismatches] == ["integers"]
