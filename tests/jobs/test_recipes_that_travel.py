"""A recipe of any method is written down for the cluster as it reads back there."""

import warnings

import pytest

from paramdelta_dist.jobs.working_dir import recipe_text
from paramdelta_dist.recipe.yaml_text import parse_recipe


@pytest.mark.parametrize(
    "text",
    [
        "base: /new\ndeltas: [{post: /post, base: /old, weight: 0.5}]\noutput: /out/{date}-{inputs}\n",
        "base: s3://m/new\nmethod: ties\ndeltas: [{post: /post, weight: [{match: '*attn*', value: 0.5}, {value: 1.0}]}]\n"
        "parameters: {density: 0.3}\noutput: /out\nstorage: {'s3://m': {region: eu-west-1}}\n",
        "method: slerp\nmodels: [{model: /one}, {model: /other}]\nparameters: {t: 0.3}\noutput: /out\nexclude: ['*.bias']\n",
    ],
    ids=["paramdelta", "ties", "slerp"],
)
def test_a_recipe_reads_back_as_it_was(text):
    recipe = parse_recipe(text, where="here")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sent = recipe_text(recipe)
    assert parse_recipe(sent, where="there") == recipe
