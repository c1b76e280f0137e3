"""Archives of ``torch.export``, looked through and made anew before torch opens them.

``torch.export.load`` unpickles sample inputs and whatever an archive says is pickled, takes its
symbolic sizes for Python, and calls the operators that it names. So it is never given a foreign
archive: :func:`checked_archive` takes out of one the members that a detector consists of, each of
which is plain data and is looked at, and puts them into a new archive. Nothing else gets through.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from detectors.weights.archives import damaged_archives
from orchestrator.checkpoints.source import weights_errors
from orchestrator.errors import DataError, SecurityError

#: Folder that all members of an archive lie in.
_ROOT: Final = "model"
_MODEL: Final = "models/model.json"
_SAMPLES: Final = "data/sample_inputs/model.pt"
_PAYLOADS: Final = {
    "data/weights/": ("model_weights_config.json", re.compile(r"weight_\d{1,9}")),
    "data/constants/": ("model_constants_config.json", re.compile(r"tensor_\d{1,9}")),
}
_EXTRA: Final = "extra/"
_COMPILED: Final = "data/aotinductor/"
_PLAIN: Final = ("archive_format", "archive_version", "byteorder", ".data/version")
#: No text of an archive is longer: graphs of large detectors have a few megabytes.
_TEXT_BYTES: Final = 256 * 2**20

#: Bytes of an element by the number that torch writes for its type; see torch._export.serde.schema.
_ELEMENT_BYTES: Final = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2
}  # fmt: skip

#: Operators of torch, and this program's own. Those of ``aten`` that write, read or print are given
#: a text to do so, see _TAKES_TEXT.
_OPERATOR: Final = re.compile(
    r"torch\.ops\.(aten|detectors|prims)\.((?!__)\w+|__(and|or|xor|lshift|rshift)__)(\.\w+)?"
)
_FUNCTIONS: Final = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
    r"|torch\.sym_(max|min|not|float|int|ite|sum)|math\.(ceil|floor|trunc)"
)
#: Operators that are told a rule by its name.
_TAKES_TEXT: Final = re.compile(
    r"torch\.ops\.aten\.(div|div_|pad|gelu|gelu_|meshgrid|searchsorted|scatter\w*|index_reduce"
    r"|bucketize|grid_sampler\w*|einsum|_assert\w*|sym_constrain\w*)\.\w+"
)
#: What symbolic sizes are made of.
_CALLS: Final = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Max|Min|Mod|Abs|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not"
    r"|Equality|Unequality|(Strict)?(Less|Greater)Than|FloorDiv|CeilDiv|CleanDiv|PythonMod"
    r"|ModularIndexing|Where|IntTrueDiv|ToFloat|(Trunc|Floor|Ceil|Round)ToInt|Identity"
)
_NODES: Final = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.UnaryOp, ast.USub,
    ast.Not, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Compare, ast.Eq,
    ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
_GUARD: Final = re.compile(
    r"(L\[['\"]\w+['\"]\]|\.(size|stride|dim)\(\)|[\d\s\[\]<>=!+*/%-]|and|or|not)*"
)
_SYMBOL: Final = re.compile(r"[a-z]{1,4}\d{1,5}")
_TREES: Final = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def checked_archive(path: Path) -> io.BytesIO:
    """A new archive with what a detector's archive consists of.

    Args:
        path: of a file that ``orchestrator export --format pt2`` may have written, and in whose
            members :func:`~detectors.weights.archives.look_through` has found no pickled code.

    Raises:
        SecurityError: something in it would run code.
        DataError: it is damaged, or no archive of a detector.
    """
    made = io.BytesIO()
    with weights_errors(path), zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as fresh:
        with damaged_archives(str(path)):
            archive = zipfile.ZipFile(path)
        with archive:
            members = _members(archive, path)
            for name, content in _contents(archive, members, path):
                fresh.writestr(f"{_ROOT}/{name}", content)
    made.seek(0)
    return made


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Members by their name below the folder that they share."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.partition("/")[2]
        if name in members:
            raise DataError(f"{path}: holds {member.filename!r} twice. Next: export again")
        members[name] = member
    compiled = next((name for name in members if name.startswith(_COMPILED)), None)
    if compiled is not None:
        raise SecurityError(_refusal(str(path), f"{compiled} is compiled code"))
    if _MODEL not in members:
        raise DataError(f"{path}: has no {_MODEL}, so it is no exported detector")
    return members


def _contents(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], path: Path
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the new archive's members."""

    def text(name: str) -> bytes:
        if name not in members or members[name].file_size > _TEXT_BYTES:
            raise DataError(f"{path}: {name} is missing or too long. Next: export again")
        return _read(archive, members[name], path)

    for name in _PLAIN:
        yield name, text(name)
    # Never read; torch wants it to be there.
    yield _SAMPLES, b""
    for name in members:
        if name.startswith(_EXTRA) and "/" not in name[len(_EXTRA) :]:
            yield name, text(name)
    for folder, (config_name, allowed) in _PAYLOADS.items():
        config = _tree(text(folder + config_name), f"{path}: {folder}{config_name}")
        for payload in _payloads(config, folder, members, allowed, path):
            yield folder + payload, _read(archive, members[folder + payload], path)
        yield folder + config_name, json.dumps(config).encode()
    graph = _tree(text(_MODEL), f"{path}: {_MODEL}")
    _check_graph(graph, f"{path}: {_MODEL}")
    yield _MODEL, json.dumps(graph).encode()


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> bytes:
    with damaged_archives(f"{path}: {member.filename}"):
        return archive.read(member)


def _tree(content: bytes, where: str) -> dict[str, Any]:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error}). Next: export again") from error
    if not isinstance(tree, dict):
        raise DataError(f"{where}: is a {type(tree).__name__}, not an object. Next: export again")
    return tree


def _payloads(
    config: Mapping[str, Any],
    folder: str,
    members: Mapping[str, zipfile.ZipInfo],
    allowed: re.Pattern[str],
    path: Path,
) -> list[str]:
    """Names of the tensors' members, each as long as its tensors say."""
    names: dict[str, None] = {}
    try:
        for tensor, payload in config["config"].items():
            name = payload["path_name"]
            if payload["use_pickle"] or not allowed.fullmatch(name):
                raise DataError(
                    f"{path}: {tensor!r} is kept as a pickle in {folder}{name}, and nothing is "
                    "unpickled here. Next: export again with this program"
                )
            meta = payload["tensor_meta"]
            sizes = [size["as_int"] for size in meta["sizes"]]
            strides = [stride["as_int"] for stride in meta["strides"]]
            offset = meta["storage_offset"]["as_int"]
            numbers = [*sizes, *strides, offset]
            if not all(isinstance(number, int) and number >= 0 for number in numbers):
                raise ValueError(f"{tensor!r} has the sizes {sizes} and strides {strides}")
            last = sum((s - 1) * step for s, step in zip(sizes, strides, strict=True)) + offset
            elements = 0 if 0 in sizes else max(last + 1, math.prod(sizes))
            needed = elements * _ELEMENT_BYTES[meta["dtype"]]
            if needed > members[folder + name].file_size:
                raise ValueError(f"{tensor!r} needs {needed} bytes, {name} has fewer")
            if meta["device"]["type"] != "cpu":
                raise ValueError(f"{tensor!r} lies on {meta['device']['type']}")
            names[name] = None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: {folder}: its list of tensors cannot be followed ({error}). Next: export "
            "again"
        ) from error
    return list(names)


def _check_graph(tree: dict[str, Any], where: str) -> None:
    """Raise for what is no plain network, and drop what only describes it."""
    try:
        module = tree["graph_module"]
        graph = module["graph"]
        if graph.get("custom_obj_values") or module.get("treespec_namedtuple_fields"):
            raise SecurityError(_refusal(where, "it holds objects of other programs"))
        for node in graph["nodes"]:
            target = node["target"]
            if not (_OPERATOR.fullmatch(target) or _FUNCTIONS.fullmatch(target)):
                raise SecurityError(_refusal(where, f"it calls {target!r}"))
            if not _TAKES_TEXT.fullmatch(target) and _holds_text(node["inputs"]):
                raise SecurityError(_refusal(where, f"it gives {target!r} a text"))
            node["metadata"] = {}
        for symbol in tree["range_constraints"]:
            if not _SYMBOL.fullmatch(symbol):
                raise SecurityError(_refusal(where, f"it names the size {symbol!r}"))
        if not set(tree["verifiers"]) <= {"TRAINING", "ATEN"}:
            raise DataError(f"{where}: is no graph for training or inference. Next: export again")
        module["metadata"] = {}
        for guard in tree["guards_code"]:
            if not _GUARD.fullmatch(guard):
                raise SecurityError(_refusal(where, f"a check of its inputs is {guard[:80]!r}"))
        # Checks of the sizes of inputs, as Python that torch would run.
        tree["guards_code"] = []
        whole = [call for call in module["module_call_graph"] if call["fqn"] == ""]
        module["module_call_graph"] = whole
        for call in whole:
            for key in ("in_spec", "out_spec"):
                _check_tree(json.loads(call["signature"][key])[1], where)
        for text in _expressions(tree):
            _check_expression(text, where)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"{where}: its graph cannot be followed ({type(error).__name__}: {error}). Next: "
            "export again"
        ) from error
    except RecursionError as error:
        raise DataError(f"{where}: is nested too deeply. Next: export again") from error


def _holds_text(tree: Any) -> bool:
    """Whether arguments hold a text, an operator or a graph of their own."""
    if isinstance(tree, dict):
        inner = ("as_string", "as_strings", "as_operator", "as_graph", "as_custom_obj")
        return any(key in tree for key in inner) or any(map(_holds_text, tree.values()))
    return isinstance(tree, list) and any(map(_holds_text, tree))


def _expressions(tree: Any) -> Iterator[Any]:
    """Every symbolic size, which torch evaluates."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "expr_str":
                yield value
            else:
                yield from _expressions(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _expressions(value)


def _check_expression(text: Any, where: str) -> None:
    try:
        parsed = ast.parse(str(text), mode="eval")
    except (SyntaxError, ValueError, MemoryError) as error:
        raise DataError(f"{where}: {str(text)[:80]!r} is no size. Next: export again") from error
    for node in ast.walk(parsed):
        sound = isinstance(node, _NODES)
        if isinstance(node, ast.Call):
            sound = isinstance(node.func, ast.Name) and bool(_CALLS.fullmatch(node.func.id))
        elif isinstance(node, ast.Name):
            sound = bool(_CALLS.fullmatch(node.id) or _SYMBOL.fullmatch(node.id))
        elif isinstance(node, ast.Constant):
            # A text is the name of a symbol; sympy evaluates any other.
            text_or_number = node.value
            sound = (
                _SYMBOL.fullmatch(text_or_number) is not None
                if isinstance(text_or_number, str)
                else isinstance(text_or_number, (bool, int, float))
            )
        if not sound:
            raise SecurityError(_refusal(where, f"a size is {str(text)[:80]!r}"))


def _check_tree(tree: Any, where: str) -> None:
    """Raise unless inputs and outputs are tensors in tuples, lists and dicts."""
    if tree["type"] not in _TREES:
        raise SecurityError(_refusal(where, f"its inputs or outputs are {tree['type']!r}"))
    for child in tree["children_spec"]:
        _check_tree(child, where)


def _refusal(where: str, why: str) -> str:
    return (
        f"{where}: is more than a network: {why}. Opening it could run code from it, which is not "
        "done. Next: export again with this program"
    )
