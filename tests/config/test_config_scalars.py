from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.config.problems import Place
from orchestrator.config.scalars import ScalarError, check_text, resolve_plain, scalar_text, shorten
from orchestrator.config.yaml_loader import compose

# Values by the core schema of YAML 1.2.2, section 10.3.2.
MEANINGS: list[tuple[str, object]] = [
    ("", None),
    ("~", None),
    ("null", None),
    ("Null", None),
    ("NULL", None),
    ("nULL", "nULL"),
    ("true", True),
    ("TRUE", True),
    ("False", False),
    ("tRUE", "tRUE"),
    ("yes", "yes"),
    ("no", "no"),
    ("on", "on"),
    ("Off", "Off"),
    ("y", "y"),
    ("0", 0),
    ("-0", 0),
    ("+12", 12),
    ("-7", -7),
    ("0o17", 15),
    ("0x1F", 31),
    ("-0x1F", "-0x1F"),
    ("0b11", "0b11"),
    ("1_000", "1_000"),
    ("9223372036854775807", 2**63 - 1),
    ("1e-3", 1e-3),
    ("1E3", 1000.0),
    ("-2.5e+2", -250.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("0.10", 0.1),
    ("1e", "1e"),
    ("e5", "e5"),
    (".", "."),
    ("1.2.3", "1.2.3"),
    ("12:30:45", "12:30:45"),
    ("2026-11-21", "2026-11-21"),
    ("01-02-2026", "01-02-2026"),
    ("inf", "inf"),
    ("nan", "nan"),
    ("=", "="),
    ("１２", "１２"),
]

REFUSED = [
    ("010", "leading zero"),
    ("-010", "leading zero"),
    ("08", "leading zero"),
    ("00", "leading zero"),
    ("01.5", "leading zero"),
    ("01e3", "leading zero"),
    (".inf", "finite"),
    ("-.Inf", "finite"),
    (".nan", "finite"),
    (".NaN", "finite"),
    ("1e999", "too large"),
    ("9223372036854775808", "64 bits"),
    ("-9223372036854775809", "64 bits"),
    ("1" * 5000, "64 bits"),
    ("0x" + "f" * 5000, "64 bits"),
    ("${HOME}/runs", "nothing expands"),
    ("a\0b", "no text"),
    ("\udcff", "no text"),
]


@pytest.mark.parametrize(("text", "value"), MEANINGS, ids=[repr(text) for text, _ in MEANINGS])
def test_a_plain_scalar_means_what_yaml_1_2_says(text: str, value: object) -> None:
    found = resolve_plain(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "why"), REFUSED, ids=[repr(text[:20]) for text, _ in REFUSED])
def test_a_scalar_that_readers_disagree_about_is_refused(text: str, why: str) -> None:
    with pytest.raises(ScalarError, match=why):
        resolve_plain(text)


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_decimal_integers_are_read_as_python_reads_them(number: int) -> None:
    assert resolve_plain(str(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(1e-5)
@example(1e16)
@example(-0.0)
def test_a_float_is_written_so_that_both_yaml_versions_read_it_back(number: float) -> None:
    text = scalar_text(number)
    here = resolve_plain(text)
    assert isinstance(here, float)
    assert math.copysign(1, here) == math.copysign(1, number)
    assert here == number
    assert yaml.safe_load(text) == number


def _is_text(text: str) -> bool:
    try:
        check_text(text)
    except ScalarError:
        return False
    return True


@given(st.text().filter(_is_text))
@example("no")
@example("1e-3")
@example("010")
@example("12:30:45")
@example("<<")
@example("=")
@example("...")
@example("---")
@example("a: b # c")
@example('\x85\u2028\ufeff\U0001f600\\"\t\n')
def test_text_is_written_so_that_both_yaml_versions_read_it_back(text: str) -> None:
    written = scalar_text(text)
    assert "\n" not in written
    in_a_list = f"key: [{written}, {written}]"
    assert compose(in_a_list, lambda *at: Place("e", *at)).tree == {"key": [text, text]}
    assert yaml.safe_load(in_a_list) == {"key": [text, text]}


def test_messages_show_no_credentials_and_no_control_characters() -> None:
    assert shorten("http://user:secret@host/\x1b[31m") == "http://***@host/\\x1b[31m"
    assert len(shorten("x" * 1000)) == 60
