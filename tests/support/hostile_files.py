"""Files that are broken, that are something else than their name says, and that would run code.

Code in them makes a folder, whose place the environment says, so that a test can see that it ran.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import nn

from detectors.weights.files import FORMAT

MARK = "HOSTILE_MARK"
BROKEN, CODE = 65, 77
TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.5, -2.0])}


class Hostile:
    """Makes the folder when it is unpickled."""

    def __reduce__(self) -> object:
        return os.mkdir, (os.environ[MARK],)


class HostileFile(NamedTuple):
    """A file to be refused.

    Attributes:
        name: its own, in an empty folder.
        verdict: exit code of every command that is given it.
        content: its bytes, from those of a sound file of its kind.
    """

    name: str
    verdict: int
    content: Callable[[bytes], bytes]


def pickled(protocol: int = 2) -> bytes:
    """Code alone."""
    return pickle.dumps(Hostile(), protocol)


def saved(content: Any, *, legacy: bool = False) -> bytes:
    """What ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def rezipped(
    content: bytes, change: Callable[[str, bytes], bytes | None], *added: tuple[str, bytes]
) -> bytes:
    """An archive with some members changed, left out (None) or added below its folder."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        folder = old.namelist()[0].partition("/")[0]
        for member in old.infolist():
            fresh = change(member.filename.partition("/")[2], old.read(member))
            if fresh is not None:
                new.writestr(member.filename, fresh)
        for name, data in added:
            new.writestr(f"{folder}/{name}", data)
    return made.getvalue()


def replaced(name: str, fresh: bytes | None) -> Callable[[bytes], bytes]:
    """The archive with one member's content changed, or without it."""

    def make(content: bytes) -> bytes:
        return rezipped(content, lambda member, data: fresh if member == name else data)

    return make


def header(tree: object, data: bytes = b"\0" * 24) -> bytes:
    """A safetensors file with a header of one's own."""
    text = json.dumps(tree).encode() if not isinstance(tree, bytes) else tree
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str = "F32", shape: tuple[int, ...] = (2, 3), end: int = 24) -> dict[str, Any]:
    """An entry of such a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, end]}


def _zip_of(*members: tuple[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return made.getvalue()


def _array(values: Any, version: tuple[int, int] | None = None) -> bytes:
    made = io.BytesIO()
    np.lib.format.write_array(made, np.asanyarray(values), version)
    return made.getvalue()


def _tar_of(name: str, data: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


_OBJECTS = np.array([Hostile()], dtype=object)


def _script() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}))
        archive.writestr("m/code/__torch__.py", "def forward(self): pass")
    return made.getvalue()


def _text_then_code() -> bytes:
    """A name of two remembered texts, as pickles since version 4 say it."""
    folder = os.environ[MARK].encode()
    return (
        b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x940h\x00h\x01\x93\x8c"
        + bytes([len(folder)])
        + folder
        + b"\x85R."
    )


def _with_damage(method: int) -> bytes:
    """A compressed member whose first bytes are those of no stream."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        archive.writestr("m/data.pkl", pickle.dumps(list(range(99))))
    content = made.getvalue()
    start = 30 + len("m/data.pkl")
    return content[:start] + b"\xff" * 12 + content[start + 12 :]


def _named_by_no_text() -> bytes:
    """A member whose name is said to be UTF-8, and is not."""
    return _zip_of(("m/dätä.pkl", b"x")).replace("ä".encode(), b"\xff\xff")


def _sparse_tar() -> bytes:
    """A member whose map of holes is none."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("storages")
        entry.pax_headers = {"GNU.sparse.map": "no,numbers", "GNU.sparse.size": "9"}
        archive.addfile(entry)
    return made.getvalue()


#: Of a file that says it is this program's, with lists in lists where its classes stand.
_DEEP = {"format": FORMAT, "class_names": "[" * 100_000, "num_classes": "[" * 100_000}
HTML = b"<!DOCTYPE html><html><body>404: not found</body></html>"


def weights_files() -> Iterator[HostileFile]:
    """Files named where a file of weights is expected."""
    both = {"a": torch.ones(2), "b": Hostile()}
    for name, verdict, content in (
        ("page.safetensors", BROKEN, HTML),
        ("page.pth", BROKEN, HTML),
        ("empty.pth", BROKEN, b""),
        ("empty.safetensors", BROKEN, b""),
        ("list.pth", BROKEN, saved([1, 2])),
        ("nothing.ckpt", BROKEN, saved({})),
        ("cut.pth", BROKEN, saved(TENSORS)[:-300]),
        ("cut-legacy.pth", BROKEN, saved(TENSORS, legacy=True)[:-10]),
        ("cut.safetensors", BROKEN, safetensors.torch.save(TENSORS)[:-3]),
        ("pointer.pth", BROKEN, b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        ("table.csv", BROKEN, b"category,image\nimage,1\n"),
        ("packed.pth", BROKEN, b"\x1f\x8b\x08" + b"\0" * 40),
        ("arrays.npz", BROKEN, _zip_of(("a.npy", _array(np.ones(3))))),
        ("bomb.pth", BROKEN, _zip_of(("m/data.pkl", b"\0" * 2**25))),
        ("sparse.pth", BROKEN, saved({"a": torch.eye(3).to_sparse()})),
        ("large.pth", BROKEN, saved({"a": torch.zeros(1).expand(2**40)})),
        ("values.pth", BROKEN, saved({"a": torch.ones(1), "best": np.float64(0.5)})),
        ("long.safetensors", BROKEN, header({"a": tensor(end=4000)})),
        ("shape.safetensors", BROKEN, header({"a": tensor(shape=(2, 4))})),
        ("type.safetensors", BROKEN, header({"a": tensor(dtype="F33")})),
        ("overlap.safetensors", BROKEN, header({"a": tensor(), "b": tensor()})),
        ("list.safetensors", BROKEN, header([1, 2])),
        ("text.safetensors", BROKEN, header(b"{not json")),
        ("huge.safetensors", BROKEN, struct.pack("<Q", 2**29) + b"{}"),
        ("none.safetensors", BROKEN, header({"__metadata__": {"format": "pt"}}, b"")),
        ("stream.pth", BROKEN, _with_damage(zipfile.ZIP_DEFLATED)),
        ("lzma.pth", BROKEN, _with_damage(zipfile.ZIP_LZMA)),
        ("bzip2.pth", BROKEN, _with_damage(zipfile.ZIP_BZIP2)),
        ("names.pth", BROKEN, _named_by_no_text()),
        ("holes.tar", BROKEN, _sparse_tar()),
        ("deep.safetensors", BROKEN, header({"__metadata__": _DEEP, "a": tensor()})),
        ("raw0.pth", CODE, pickled(0)),
        ("raw1.pt", CODE, pickled(1)),
        ("raw2.bin", CODE, pickled(2)),
        ("raw4.pth", CODE, pickled(4)),
        ("raw.safetensors", CODE, pickled(2)),
        ("raw.npy", CODE, pickled(2)),
        ("remembered.pth", CODE, _text_then_code()),
        ("both.pth", CODE, saved(both)),
        ("both-legacy.ckpt", CODE, saved(both, legacy=True)),
        ("module.pth", CODE, saved(nn.Linear(2, 2))),
        ("script.pt", CODE, _script()),
        ("longer.npz", CODE, _zip_of(("a.npy", _array(_OBJECTS, (2, 0))))),
        ("named.npz", CODE, _zip_of(("a.npy", _array(_OBJECTS, (3, 0))))),
        ("objects.npz", CODE, _zip_of(("a.npy", _array(_OBJECTS)))),
        ("old.tar", CODE, _tar_of("pickle", pickled())),
        ("inner.pth", CODE, rezipped(saved(TENSORS), lambda _, d: d, ("x.pth", saved(both)))),
        ("more.pth", CODE, rezipped(saved(TENSORS), lambda _, d: d, ("more.pkl", pickled()))),
        ("storage.pth", CODE, replaced("data/0", pickled())(saved(TENSORS))),
        ("version.pth", CODE, replaced("version", pickled())(saved(TENSORS))),
    ):
        yield HostileFile(name, verdict, lambda _, content=content: content)


def _graph(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def edit(member: str, data: bytes) -> bytes:
        if member != "models/model.json":
            return data
        tree = json.loads(data)
        change(tree)
        return json.dumps(tree).encode()

    return lambda content: rezipped(content, edit)


def with_metadata(**changes: Any) -> Callable[[bytes], bytes]:
    """The archive with some entries of its metadata changed."""

    def edit(member: str, data: bytes) -> bytes:
        if member != "extra/metadata.json":
            return data
        return json.dumps(json.loads(data) | changes).encode()

    return lambda content: rezipped(content, edit)


def _weights(change: Callable[[dict[str, Any]], None], *added: tuple[str, bytes]) -> Any:
    """Changes what is said of the first tensor."""

    def edit(member: str, data: bytes) -> bytes:
        if member != "data/weights/model_weights_config.json":
            return data
        tree = json.loads(data)
        change(next(iter(tree["config"].values())))
        return json.dumps(tree).encode()

    return lambda content: rezipped(content, edit, *added)


def _constant(name: str) -> Callable[[bytes], bytes]:
    def edit(member: str, data: bytes) -> bytes:
        if member != "data/constants/model_constants_config.json":
            return data
        tree = json.loads(data)
        next(iter(tree["config"].values())).update(path_name=name, use_pickle=True)
        return json.dumps(tree).encode()

    return lambda content: rezipped(content, edit, (f"data/constants/{name}", pickled()))


def _first_size(tree: dict[str, Any], text: str) -> None:
    sizes = tree["graph_module"]["graph"]["sym_int_values"]
    next(iter(sizes.values()))["as_expr"]["expr_str"] = text


def _first_node(tree: dict[str, Any], target: str, argument: Any = None) -> None:
    node = tree["graph_module"]["graph"]["nodes"][0]
    node["target"] = target
    if argument is not None:
        node["inputs"] = [{"name": "x", "arg": argument, "kind": 1}]


def _in_spec(tree: dict[str, Any]) -> None:
    context = {"default_factory_module": "antigravity", "default_factory_name": "webbrowser"}
    spec = {"type": "collections.defaultdict", "context": json.dumps(context), "children_spec": []}
    tree["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, spec])


_PAD = {"short_side": None, "long_side": None, "fill": [0, 0, 0]}


def pt2_files() -> Iterator[HostileFile]:
    """Exported archives; each is made from a sound one."""
    run = f"__import__('os').mkdir({os.environ[MARK]!r})"
    samples = "data/sample_inputs/model.pt"
    legacy = ("data/weights/model.pt", pickled())
    library = ("data/aotinductor/model/m.so", b"\x7fELF")
    yield from (
        HostileFile("page.pt2", BROKEN, lambda _: HTML),
        HostileFile("empty.pt2", BROKEN, lambda _: b""),
        HostileFile("cut.pt2", BROKEN, lambda content: content[:-1000]),
        HostileFile("other.pt2", BROKEN, lambda _: saved(TENSORS)),
        HostileFile("bare.pt2", BROKEN, replaced("models/model.json", None)),
        HostileFile("mute.pt2", BROKEN, replaced("extra/metadata.json", None)),
        HostileFile("liar.pt2", BROKEN, replaced("extra/metadata.json", b'{"version": 1}')),
        HostileFile("text.pt2", BROKEN, replaced("models/model.json", b"[" * 100_000)),
        HostileFile("endless.pt2", BROKEN, with_metadata(input_size=[1e999, 300])),
        HostileFile("flat.pt2", BROKEN, with_metadata(input_size=[300])),
        HostileFile("vast.pt2", BROKEN, with_metadata(input_size=[10**6, 10**6])),
        HostileFile("none.pt2", BROKEN, with_metadata(input_size=[0, 300])),
        HostileFile("listed.pt2", BROKEN, with_metadata(outputs=["boxes", "scores"])),
        HostileFile("unpadded.pt2", BROKEN, with_metadata(resize="pad", pad={"fill": [0, 0, 0]})),
        HostileFile(
            "padded.pt2", BROKEN, with_metadata(resize="pad", pad=_PAD | {"fill": "black"})
        ),
        HostileFile(
            "short.pt2", BROKEN, with_metadata(resize="pad", pad=_PAD | {"short_side": "8"})
        ),
        HostileFile(
            "labels.pt2", BROKEN, with_metadata(label_map='{"names": ["a"], "ids": [1e999]}')
        ),
        HostileFile("numbers.pt2", BROKEN, with_metadata(label_map='{"names": [1], "ids": [1]}')),
        HostileFile("recipe.pt2", BROKEN, with_metadata(postprocess=[1])),
        HostileFile("small.pt2", BROKEN, _weights(_grow)),
        HostileFile("away.pt2", BROKEN, _weights(lambda one: one.update(path_name="../a"))),
        HostileFile(
            "plain.pt2",
            BROKEN,
            _weights(
                lambda one: one.update(use_pickle=True), ("data/weights/x", saved(torch.ones(2)))
            ),
        ),
        HostileFile("samples.pt2", CODE, replaced(samples, saved(([Hostile()], {})))),
        HostileFile("raw-samples.pt2", CODE, replaced(samples, pickled())),
        HostileFile(
            "weight.pt2",
            CODE,
            _weights(
                lambda one: one.update(use_pickle=True, path_name="weight_9999"),
                ("data/weights/weight_9999", saved(Hostile())),
            ),
        ),
        HostileFile("constant.pt2", CODE, _constant("tensor_9999")),
        HostileFile("object.pt2", CODE, _constant("custom_obj_0")),
        HostileFile("opaque.pt2", CODE, _constant("opaque_obj_0")),
        HostileFile("legacy.pt2", CODE, lambda c: rezipped(c, lambda _, data: data, legacy)),
        HostileFile("size.pt2", CODE, _graph(lambda tree: _first_size(tree, run))),
        HostileFile("nested.pt2", CODE, _graph(lambda tree: _first_size(tree, f'Add("{run}")'))),
        HostileFile("check.pt2", CODE, _graph(lambda tree: tree.update(guards_code=[run]))),
        HostileFile("load.pt2", CODE, _graph(lambda tree: _first_node(tree, "torch.load"))),
        HostileFile(
            "script.pt2", CODE, _graph(lambda tree: _first_node(tree, "torch._C._jit_init"))
        ),
        HostileFile(
            "file.pt2",
            CODE,
            _graph(
                lambda tree: _first_node(
                    tree, "torch.ops.aten.from_file.default", {"as_string": os.environ[MARK]}
                )
            ),
        ),
        HostileFile("tree.pt2", CODE, _graph(_in_spec)),
        HostileFile(
            "compiled.pt2",
            CODE,
            lambda c: rezipped(c, lambda _, data: data, library),
        ),
    )


def _grow(payload: dict[str, Any]) -> None:
    payload["tensor_meta"]["sizes"] = [{"as_int": 2**40}]
    payload["tensor_meta"]["strides"] = [{"as_int": 0}]
