from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from orchestrator.config import yaml_loader
from orchestrator.config.yaml_loader import (
    MAX_ALIASES,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    load_file,
)
from orchestrator.errors import ConfigError

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
)
UNTIL_THE_DEPTH_LIMIT = "a: " + "[" * (MAX_DEPTH - 2) + "1" + "]" * (MAX_DEPTH - 2)

# Text; where the complaint points, as line and column or line and key; what it says.
REFUSED: dict[str, tuple[str | bytes, str, str]] = {
    "empty file": ("", "e.yaml:1:1:", "found nothing"),
    "only comments": ("# nothing\n", "e.yaml:1:1:", "found nothing"),
    "null document": ("---\n", "e.yaml:2:1:", "found nothing"),
    "a list": ("- a\n- b\n", "e.yaml:1:1:", "a list or a single value"),
    "a scalar": ("hello\n", "e.yaml:1:1:", "a list or a single value"),
    "duplicate key": ("a: 1\nb: 2\na: 3\n", "e.yaml:3 a:", "first given at e.yaml:1"),
    "duplicate in flow": ("t: {x: 1, x: 1}\n", "e.yaml:1 t.x:", "duplicate key"),
    "duplicate, quoted": ('a: 1\n"a": 2\n', "e.yaml:2 a:", "duplicate key"),
    "duplicate, nested": ("t:\n  l:\n  - k: 1\n    k: 2\n", "e.yaml:4 t.l.0.k:", "duplicate key"),
    "merge key": ("b: &b {x: 1}\na:\n  <<: *b\n", "e.yaml:3 a:", "merge keys"),
    "merge key of a list": ("a:\n  <<: [{x: 1}, {y: 2}]\n", "e.yaml:2 a:", "merge keys"),
    "integer key": ("1: x\n", "e.yaml:1:1:", "a key must be text"),
    "boolean key": ("t:\n  true: x\n", "e.yaml:2 t:", "a key must be text"),
    "null key": ("~: x\n", "e.yaml:1:1:", "a key must be text"),
    "empty key": ("? \n: x\n", "e.yaml:", "a key must be text"),
    "octal key": ("010: x\n", "e.yaml:1:1:", "in a key: found 010"),
    "list as key": ("? [a, b]\n: x\n", "e.yaml:1:3:", "a key must be plain text"),
    "mapping as key": ("{a: 1}: x\n", "e.yaml:1:1:", "a key must be plain text"),
    "alias as key": ("a: &a x\n*a : y\n", "e.yaml:2:1:", "a key must be plain text"),
    "python object": ("a: !!python/object/apply:os.system [id]\n", "e.yaml:1 a:", "tags are not"),
    "python name": ("a: !!python/name:os.system ''\n", "e.yaml:1 a:", "tags are not"),
    "standard tag": ("a: !!str 5\n", "e.yaml:1 a:", "tags are not"),
    "local tag": ("a: !env HOME\n", "e.yaml:1 a:", "tags are not"),
    "non-specific tag": ("a: ! 5\n", "e.yaml:1 a:", "tags are not"),
    "tag on a section": ("a: !!omap\n  b: 1\n", "e.yaml:1 a:", "tags are not"),
    "yaml directive": ("%YAML 1.1\n---\na: 1\n", "e.yaml:1:1:", "directive"),
    "tag directive": ("%TAG ! tag:x,2000:\n---\na: 1\n", "e.yaml:1:1:", "directive"),
    "two documents": ("a: 1\n---\nb: 2\n", "e.yaml:2:1:", "second document"),
    "document after its end": ("a: 1\n...\nb: 2\n", "e.yaml:3:1:", ""),
    "tab as indentation": ("t:\n\ta: 1\n", "e.yaml:2:1:", "found a tab"),
    "tab as separator": ("a:\t1\n", "e.yaml:1:3:", "found a tab"),
    "tab in a comment": ("a: 1 #\tx\n", "e.yaml:1:7:", "found a tab"),
    "control character": ("a: x\x07y\n", "e.yaml:1:5:", "U+0007"),
    "null byte": ("a: x\0y\n", "e.yaml:1:5:", "U+0000"),
    "next-line character": ("a: 1\nb: x\x85c: 2\n", "e.yaml:2:5:", "U+0085"),
    "line separator": ("a: x\u2028b: 2\n", "e.yaml:1:5:", "U+2028"),
    "escaped null": ('a: "x\\0y"\n', "e.yaml:1 a:", "no text"),
    "escaped surrogate": ('a: "\\uD800"\n', "e.yaml:1", "character"),
    "latin-1": ("a: caf\xe9\n".encode("latin-1"), "e.yaml:1:7:", "byte 0xe9, which is not UTF-8"),
    "overlong utf-8": (b"a: 1\nb: \xc0\x80\n", "e.yaml:2:4:", "byte 0xc0"),
    "utf-8 mark": (b"\xef\xbb\xbfa: 1\n", "e.yaml:1:1:", "byte-order mark"),
    "utf-16": ("a: 1\n".encode("utf-16"), "e.yaml:1:1:", "byte-order mark"),
    "octal": ("t:\n  a: 010\n", "e.yaml:2 t.a:", "leading zero"),
    "octal in a list": ("a: [1, 2, 007]\n", "e.yaml:1 a.2:", "leading zero"),
    "infinity": ("a: .inf\n", "e.yaml:1 a:", "must be finite"),
    "not a number": ("a: .NaN\n", "e.yaml:1 a:", "must be finite"),
    "overflow": ("a: 1e400\n", "e.yaml:1 a:", "too large"),
    "beyond 64 bits": ("a: 18446744073709551616\n", "e.yaml:1 a:", "64 bits"),
    "interpolation": ("a: ${HOME}/x\n", "e.yaml:1 a:", "nothing expands"),
    "interpolation, quoted": ('a: "${oc.env:KEY}"\n', "e.yaml:1 a:", "nothing expands"),
    "unknown alias": ("base: &base 1\na: *bsae\n", "e.yaml:2 a:", "did you mean '*base'?"),
    "anchor set twice": ("a: &x 1\nb: &x 2\n", "e.yaml:2 b:", "already set at e.yaml:1"),
    "self reference, list": ("a: &a [*a]\n", "e.yaml:1 a.0:", "inside its own anchor"),
    "self reference, map": ("&a x:\n  y: *a\n", "e.yaml:1:1:", "a key must be plain text"),
    "self reference, deep": ("a: &a {b: {c: *a}}\n", "e.yaml:1 a.b.c:", "inside its own anchor"),
    "alias bomb": (BOMB, "e.yaml:5 a4", "more than 10,000 values"),
    "too many aliases": (
        "a: &a 1\nb: [" + ", ".join(["*a"] * (MAX_ALIASES + 1)) + "]\n",
        f"e.yaml:2 b.{MAX_ALIASES}:",
        "more than 100 aliases",
    ),
    "too many values": ("a:\n" + "- 1\n" * MAX_NODES, "e.yaml:9999 a.9997:", "more than 10,000"),
    "too deep": ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "e.yaml:1", "32 levels"),
    "10,000 deep": ("a: " + "[" * 10_000, "e.yaml:1", "32 levels"),
    "deep through aliases": (
        "a: &a " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 20 + "*a" + "]" * 20 + "\n",
        "e.yaml:2 b.0",
        "32 levels",
    ),
    "too large": ("#" * (MAX_BYTES + 1), "e.yaml:1:1:", "more than 1,048,576 bytes"),
    "colon in plain text": ("a: b: c\n", "e.yaml:1:5:", "not YAML"),
    "missing colon": ("a: 1\nb\nc: 2\n", "e.yaml:3:", "write 'key: value'"),
    "bad indentation": ("a:\n  b: 1\n c: 2\n", "e.yaml:3:2:", "indentation"),
    "unclosed list": ("a: [1, 2\n", "e.yaml:2:1:", "close the bracket"),
    "unclosed quotes": ('a: "x\n', "e.yaml:2:1:", "close the quotes"),
    "reserved character": ("a: @home\n", "e.yaml:1:4:", "quote the text"),
    "unknown escape": ('a: "\\q"\n', "e.yaml:1:", "not YAML"),
}


def refusals(content: str | bytes) -> list[str]:
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    Path("e.yaml").write_bytes(data)
    try:
        document = load_file(Path("e.yaml"))
    except ConfigError as error:
        return str(error).splitlines()[1:-1]
    return [str(problem) for problem in document.problems]


@pytest.mark.parametrize("parser", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize("case", REFUSED)
def test_malformed_yaml_is_refused_where_it_is_wrong(
    case: str, parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(yaml, parser):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yaml_loader, "_PARSER", getattr(yaml, parser))
    monkeypatch.chdir(tmp_path)
    content, where, what = REFUSED[case]
    (found,) = refusals(content)
    assert found.startswith(where)
    assert what in found


ACCEPTED: dict[str, tuple[str, object]] = {
    "json": ('{"a": [1, 2.5, null, true], "b": {}}', {"a": [1, 2.5, None, True], "b": {}}),
    "document start": ("---\na: 1\n", {"a": 1}),
    "document end": ("a: 1\n...\n", {"a": 1}),
    "windows line ends": ("a: 1\r\nb:\r\n  c: x\r\n", {"a": 1, "b": {"c": "x"}}),
    "numbers and words": ("a: 1e-3\nb: no\nc: 12:30:45\n", {"a": 1e-3, "b": "no", "c": "12:30:45"}),
    "words as keys": ("on: 1\nno: 2\n", {"on": 1, "no": 2}),
    "quoted are text": ("a: '010'\nb: \"1\"\n'1': true\n", {"a": "010", "b": "1", "1": True}),
    "empty value": ("a:\nb: ''\n", {"a": None, "b": ""}),
    "folded text": ("a: >-\n  one\n  two\n", {"a": "one two"}),
    "literal text": ("a: |\n  010\n", {"a": "010\n"}),
    "alias": ("a: &x {k: [1]}\nb: *x\n", {"a": {"k": [1]}, "b": {"k": [1]}}),
    "as many aliases as allowed": (
        "a: &a 1\nb: [" + ", ".join(["*a"] * MAX_ALIASES) + "]\n",
        {"a": 1, "b": [1] * MAX_ALIASES},
    ),
    "comments and blanks": ("# x\n\na: 1 # y\n", {"a": 1}),
    "beyond the basic plane": ("a: \U0001f600é\n", {"a": "\U0001f600é"}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_ordinary_yaml_is_read_as_yaml_1_2(case: str, tmp_path: Path) -> None:
    content, tree = ACCEPTED[case]
    path = tmp_path / "e.yaml"
    path.write_bytes(content.encode("utf-8"))
    document = load_file(path)
    assert document.problems == []
    assert document.tree == tree


def test_the_limits_themselves_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(UNTIL_THE_DEPTH_LIMIT)
    assert load_file(path).problems == []
    # The mapping, its key and the list take three of them.
    path.write_text("a:\n" + "- 1\n" * (MAX_NODES - 3))
    tree = load_file(path).tree
    assert isinstance(tree, dict)
    assert tree["a"] == [1] * (MAX_NODES - 3)


def test_every_key_and_item_has_its_position(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("a: 1\nb:\n  c: [x,\n    y]\n  d: &d\n    e: 2\nf: *d\n")
    at = {key: (place.line, place.column) for key, place in load_file(path).places.items()}
    assert at == {
        (): (1, 1),
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", "c"): (3, 3),
        ("b", "c", 0): (3, 7),
        ("b", "c", 1): (4, 5),
        ("b", "d"): (5, 3),
        ("b", "d", "e"): (6, 5),
        ("f",): (7, 1),
        ("f", "e"): (6, 5),
    }


def test_everything_wrong_with_a_readable_file_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = refusals("a: 010\nb: !x 1\na: 2\n<<: {}\n5: 6\nc: .nan\n")
    assert [line.split()[0] for line in found] == [
        "e.yaml:1",
        "e.yaml:2",
        "e.yaml:3",
        "e.yaml:4:1:",
        "e.yaml:5:1:",
        "e.yaml:6",
    ]


def test_a_file_that_is_not_there_is_named_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"quikstart\.yaml does not exist; did you mean .*quicks"):
        load_file(tmp_path / "quikstart.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_file(tmp_path)


HOSTILE = {
    "alias bomb": BOMB,
    "brackets": "[" * MAX_BYTES,
    "nested blocks": "- " * (MAX_BYTES // 2),
    "one long comment": "#" * (MAX_BYTES - 8) + "\na: 1",
    "blank lines": "\n" * (MAX_BYTES - 8) + "a: 1",
    "many keys": "".join(f"k{i}: 1\n" for i in range(90_000)),
    "unclosed quotes": 'a: "' + "x " * (MAX_BYTES // 2 - 8),
    "one long key": "k" * (MAX_BYTES - 8) + ": 1",
    "a hundred megabytes": "a: 1\n" + "#" * (100 << 20),
}


def test_hostile_files_cost_less_than_a_second_and_fifty_megabytes(tmp_path: Path) -> None:
    # A process of its own, because peak memory never falls.
    script = textwrap.dedent(
        """
        import json, resource, sys, time
        from pathlib import Path
        from orchestrator.config.yaml_loader import load_file
        from orchestrator.errors import ConfigError
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = {}
        for path in map(Path, sys.argv[1:]):
            start = time.process_time()
            try:
                load_file(path)
            except ConfigError:
                pass
            seconds[path.name] = time.process_time() - start
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([seconds, (after - before) / 1024]))
        """
    )
    paths = []
    for name, text in HOSTILE.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", script, *paths],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    seconds, megabytes = json.loads(done.stdout)
    assert max(seconds.values()) < 1.0, seconds
    assert megabytes < 50
