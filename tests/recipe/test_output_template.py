"""Templates of output names: two names in braces and nothing else; what becomes of them; and where their pointer lies."""

import json
import re
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_dist.errors import RecipeError, UsageError
from paramdelta_dist.recipe.flags import recipe_from_flags
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.output_template import check_template, expand, folder_of, is_template, series_name
from tests.terminal import call

DAY, FINGERPRINT = date(2026, 11, 21), "0123456789abcdef0123456789abcdef01234567"

literal = st.text("abcXYZ019-_.= é%$", min_size=1, max_size=6).filter(lambda text: text.strip(".") != "")
field = st.sampled_from(["{date}", "{inputs}"])
plain_part = literal
changing_part = st.lists(literal | field, min_size=1, max_size=4).map("".join).filter(lambda part: "{" in part)
roots = st.sampled_from(["s3://bucket", "gs://bucket/models", "/models", "memory://x", "sftp://host/models"])
templates = st.builds(
    lambda root, plain, changing, rest: "/".join([root, *plain, changing, *rest]),
    roots,
    st.lists(plain_part, max_size=2),
    changing_part,
    st.lists(plain_part | changing_part, max_size=2),
)


@given(templates, st.dates(), st.integers(0, 16**40 - 1))
def test_expanding_leaves_no_brace_and_changes_nothing_but_the_names(template, day, number):
    fingerprint = f"{number:040x}"
    assert check_template(template) == template
    made = expand(template, day=day, fingerprint=fingerprint)
    assert not is_template(made)
    pattern = re.escape(template).replace(re.escape("{date}"), r"\d{4}-\d\d-\d\d").replace(re.escape("{inputs}"), "[0-9a-f]{12}")
    assert re.fullmatch(pattern, made)
    assert ("{date}" in template) == (
        expand(template, day=date(1999, 12, 31), fingerprint=fingerprint) != made or day == date(1999, 12, 31)
    )


@given(templates, st.dates())
def test_the_folder_of_a_template_is_the_same_every_night_and_holds_every_output(template, day):
    folder = folder_of(template)
    assert not is_template(folder)
    assert expand(template, day=day, fingerprint=FINGERPRINT).startswith(folder + "/")
    assert template.startswith(folder + "/")
    assert is_template(template[len(folder) + 1 :].partition("/")[0])


@given(templates)
def test_the_name_of_a_series_is_a_file_name_and_never_that_of_an_output(template):
    name = series_name(template)
    assert "/" not in name
    assert "latest" in name
    assert not is_template(name)
    below = expand(template, day=DAY, fingerprint=FINGERPRINT)[len(folder_of(template)) + 1 :]
    assert below.partition("/")[0] != f"{name}.json"


@given(templates, templates)
def test_series_with_different_fixed_parts_have_different_names(one, other):
    def fixed(template):  # `/` and `-` are one sign in a file name
        return re.split(r"\{\w+\}(?:[-_.]?\{\w+\})*", template[len(folder_of(template)) + 1 :].replace("/", "-"))

    if not any("latest" in part for template in (one, other) for part in fixed(template)):
        assert (series_name(one) == series_name(other)) == (fixed(one) == fixed(other))


@given(st.text("{}dateinpus/$ ", max_size=30))
def test_braces_mean_one_of_two_names_or_are_refused(text):
    known = re.sub(r"\{(date|inputs)\}", "", text)
    if "{" in known or "}" in known:
        with pytest.raises(UsageError, match=r"\{date\}.*\{inputs\}") as raised:
            check_template(f"/models/{text}")
        assert raised.value.exit_code == 2
    else:
        assert check_template(f"/models/{text}") == f"/models/{text}"


@pytest.mark.parametrize(
    ("template", "folder", "name"),
    [
        ("s3://m/nightly/{date}", "s3://m/nightly", "latest"),
        ("s3://m/nightly/{date}-{inputs}", "s3://m/nightly", "latest"),
        ("s3://m/{inputs}", "s3://m", "latest"),
        ("s3://m/nightly/llama-{date}", "s3://m/nightly", "llama-latest"),
        ("s3://m/nightly/{date}/llama", "s3://m/nightly", "latest-llama"),
        ("s3://m/nightly/{date}/llama-{inputs}", "s3://m/nightly", "latest-llama-latest"),
        ("/{date}", "/", "latest"),
    ],
)
def test_where_the_pointer_lies_and_how_it_is_called(template, folder, name):
    assert (folder_of(template), series_name(template)) == (folder, name)


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("s3://m/{time}", r"\{time\} is not known in an output"),
        ("s3://m/{Date}", r"\{Date\} is not known"),
        ("s3://m/{date:%Y}", r"\{date:%Y\} is not known"),
        ("s3://m/{date.year}", "not known"),
        ("s3://m/{}", r"\{\} is not known"),
        ("s3://m/{{date}}", "a brace without its partner"),
        ("s3://m/${HOME}", r"\{HOME\} is not known"),
        ("s3://m/{date", "a brace without its partner"),
        ("s3://{date}/m", "the bucket or host itself cannot change"),
        ("s3://{inputs}", "the bucket or host itself cannot change"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(output, problem):
    with pytest.raises(RecipeError, match=problem):
        recipe_from_flags(base="/new", deltas=["/post:/old"], output=output)


def test_a_template_that_would_lie_in_an_input_is_refused_before_and_after_it_is_expanded():
    with pytest.raises(RecipeError, match="are in each other"):
        recipe_from_flags(base="s3://m/new", deltas=["s3://m/post"], output="s3://m/new/{date}")
    recipe = Recipe.model_validate({"base": "s3://m/2026-11-21", "deltas": [{"post": "s3://m/post"}], "output": "s3://m/{date}"})
    assert recipe.with_output("s3://m/2026-11-22").output == "s3://m/2026-11-22"
    with pytest.raises(RecipeError, match="are in each other"):
        recipe.with_output(expand(recipe.output, day=DAY, fingerprint=FINGERPRINT))


def test_the_command_line_says_what_is_known_and_exits_with_2(tmp_path):
    done = call("plan", "--base", "/no/new", "--delta", "/no/post", "--output", "/no/{day}", "--json", cwd=tmp_path)
    assert done.returncode == 2
    message = json.loads(done.stdout)["error"]["message"]
    assert "{day} is not known" in message
    assert "{date}" in message
    assert "{inputs}" in message
