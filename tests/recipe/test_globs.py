"""Values by rule: what is chosen, in which order, what a gradient is at each layer, and what is refused."""

import pytest

from paramdelta_dist.recipe.rules import Chooser, count_layers, parse_rules, parse_value

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def layer(number, rest="mlp.up_proj.weight"):
    return f"model.layers.{number}.{rest}"


NAMES = [EMBED, *(layer(n, rest) for n in range(5) for rest in ("self_attn.q_proj.weight", "mlp.up_proj.weight")), NORM, HEAD]


def chooser(*rules, layers=5):
    return Chooser(parse_rules(rules, number), "weight", layers)


def number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("should be a finite number")
    return float(value)


def test_the_first_rule_that_matches_decides():
    chosen = chooser({"match": "*.mlp.*", "layers": 1, "value": 3}, {"component": "mlp", "value": 2}, {"value": 1})
    assert chosen.value(layer(1)) == (3, True)
    assert chosen.value(layer(2)) == (2, True)
    assert chosen.value(layer(1, "self_attn.q_proj.weight")) == (1, True)
    assert chosen.value(EMBED) == (1, True)


def test_without_a_default_the_rest_has_no_value():
    assert chooser({"component": ["embedding", "lm_head"], "value": 0}).value(NORM) == (None, False)


@pytest.mark.parametrize(
    ("layers", "inside"), [(2, {2}), ("2", {2}), ("1-3", {1, 2, 3}), ("3-", {3, 4}), ([0, "3-4"], {0, 3, 4}), ("0 - 1", {0, 1})]
)
def test_layers_are_counted_from_0_and_ranges_include_their_ends(layers, inside):
    chosen = chooser({"layers": layers, "value": 1})
    assert {n for n in range(5) if chosen.value(layer(n))[1]} == inside
    assert not any(chosen.value(name)[1] for name in (EMBED, NORM, HEAD))


def test_a_gradient_is_a_line_through_its_numbers_from_the_first_layer_to_the_last():
    chosen = chooser({"value": [0, 1]})
    assert [chosen.value(layer(n))[0] for n in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [chooser({"value": [0, 4, 0]}).value(layer(n))[0] for n in range(5)] == [0, 2, 4, 2, 0]
    assert (chosen.value(EMBED)[0], chosen.value(NORM)[0], chosen.value(HEAD)[0]) == (0, 0, 0)


def test_a_gradient_spans_the_layers_that_its_rule_names():
    chosen = chooser({"layers": "1-3", "value": [10, 20]}, {"layers": "4-", "value": [5, 6]}, {"value": 0})
    assert [chosen.value(layer(n))[0] for n in range(5)] == [0, 10, 15, 20, 6]
    assert chooser({"value": [1, 2]}, layers=1).value(layer(0)) == (2, True)


def test_rules_that_decide_nothing_are_named_with_the_reason():
    chosen = chooser({"match": "*.mpl.*", "value": 3}, {"component": "mlp", "value": 2}, {"match": "*up_proj*", "value": 4}, {"value": 1})
    for name in NAMES:
        chosen.value(name)
    assert chosen.idle(NAMES) == [
        "weight: {match: *.mpl.*, value: 3} matches no tensor that is merged",
        "weight: {match: *up_proj*, value: 4} only matches tensors that a rule before it decides",
    ]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "empty"),
        ([{"match": "*"}], "rule 1: 'value' is missing"),
        ([{"value": 1}, {"match": "*", "value": 2}], "rule 1: has no condition.*put it last"),
        ([{"mtach": "*", "value": 2}], "rule 1: unknown key 'mtach'; known keys: match, layers, component, value"),
        ([{"component": "mlps", "value": 2}], "component: 'mlps' is none; they are embedding, attention, mlp"),
        ([{"layers": "5-2", "value": 2}], "ends before it begins"),
        ([{"layers": "a", "value": 2}], "should be a layer counted from 0"),
        ([{"layers": True, "value": 2}], "should be a layer counted from 0"),
        ([{"match": 3, "value": 2}], "match: should be a glob"),
        ([{"match": "*", "value": "x"}], "rule 1: should be a finite number"),
        ([{"match": "*", "value": [1]}], "should be a finite number; a list is a gradient, of two or more numbers"),
        ([0.5], "rule 1: should be a mapping"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_number(rules, message):
    with pytest.raises(ValueError, match=message):
        parse_rules(rules, number)


def test_a_plain_value_and_a_plain_gradient_are_rules_for_everything():
    assert Chooser(parse_value(0.5, number), "weight", 5).value(EMBED) == (0.5, True)
    assert Chooser(parse_value([0, 1], number), "weight", 5).value(layer(2)) == (0.5, True)


def test_layers_are_counted_by_the_names():
    assert count_layers(NAMES) == 5
    assert count_layers([EMBED]) == 0
