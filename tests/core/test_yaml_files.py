"""YAML read through libyaml, with what we refuse."""

from __future__ import annotations

import json

import pytest
import yaml

from lookback.core.errors import UserError
from lookback.core.yaml_files import MOST_LEVELS, StrictDumper, load_yaml

VALUE = {"a": [1, -2.5, "x", None, True, {"b": "é\n\u2028"}], "b c": [], "1e5": "1e5", "n": [[]]}


@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_yaml(indent):
    assert load_yaml(json.dumps(VALUE, indent=indent), "x") == VALUE


def test_what_is_dumped_in_blocks_is_read():
    assert load_yaml(yaml.dump(VALUE, Dumper=StrictDumper), "x") == VALUE


@pytest.mark.parametrize(
    "text", ["a: [1, 2, ]\n", "a:\n- 1\n- 2\n", "? a\n: [1,2]\n", "{a: [1,2]}"]
)
def test_ways_to_write_one_value(text):
    assert load_yaml(text, "x") == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is there twice.* line 3, column 1"),
        ("a: 1\nb: [1, 2\n", ".* line 3"),
        ("a: 1\nb: *c\n", r"aliases \(\*c\) are not read.* line 2, column 4"),
        ("a: 1\n\tb: 2\n", ".* line 2"),
        ("a: 1\n--- \nb: 2\n", "single document"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ("- " * 101 + "1", "nested too deeply"),
        ("{a: " * 101 + "1" + "}" * 101, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, says):
    with pytest.raises(UserError, match=f"^x is not valid YAML.*{says}"):
        load_yaml(text, "x")


def test_lists_may_lie_in_each_other():
    assert load_yaml("[" * MOST_LEVELS + "]" * MOST_LEVELS, "x")
    assert load_yaml(f"a: {'[' * 20}{']' * 20}\nb: {'[' * 90}{']' * 90}\n", "x")
