"""What annotation files said, kept as a manifest that is used instead of parsing them again.

``orchestrator check`` keeps one for each split, in the form that shards have: ``manifest.arrow``
with everything but the pixels, and ``index.json`` with its digests. Both lie in a folder of
``data.cache`` that belongs to the place of the annotations, so there is one at most. Who reads the
split later takes it when

- the fingerprint in it is that of the files as they are now, which are read and hashed for it
  (:mod:`orchestrator.data.readers.fingerprint`), so old records cannot win over new ones;
- its bytes have the SHA-256 of the index, and its records the digest of the data set.

Any other one is made anew. Image files are looked for each time, whatever is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

from orchestrator.data.columns import INDEX, MANIFEST, OF_DATASET, read_columns
from orchestrator.data.findings import Finding, ReadResult
from orchestrator.data.node_cache import cache_folder, private_folder
from orchestrator.data.readers.build import MISSING_IMAGE, missing_files
from orchestrator.data.readers.fingerprint import Source, fingerprint
from orchestrator.data.shards.manifest import decode, encode, open_manifest
from orchestrator.data.shards.split import Index, read_index
from orchestrator.errors import OrchestratorError
from orchestrator.storage.folders import LocalFolder

_FINGERPRINT, _FINDINGS = "fingerprint", "findings"


def read_digested(
    source: Source,
    parse: Callable[[Source], ReadResult],
    *,
    cache: str | None,
    keep: bool,
) -> ReadResult:
    """The split, from its manifest where there is one of these very files.

    Args:
        source: its annotations.
        parse: reads them.
        cache: ``data.cache``.
        keep: keep a manifest where there is none. One that is there, but damaged or of other
            annotations, is replaced in any case.

    Raises:
        OrchestratorError: what ``parse`` raises; nothing about the manifest itself.
    """
    home = cache_folder(cache) / "manifests" / _name(source)
    if not keep and not home.is_dir():
        return parse(source)
    before = fingerprint(source)
    if before is not None:
        kept = _kept(LocalFolder(home), source, before, cache)
        if kept is not None:
            return kept
    result = parse(source)
    if before is None or fingerprint(source) != before:
        return replace(result, unkept="the annotations changed while they were read")
    return _keep(LocalFolder(home), result, before, cache)


def _name(source: Source) -> str:
    """Folder of the manifest: a function of where the annotations lie."""
    places = [source.images, source.annotations, source.classes or ""]
    text = "\0".join([source.kind, *(str(Path(place).absolute()) for place in places)])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _kept(
    folder: LocalFolder, source: Source, expected: str, cache: str | None
) -> ReadResult | None:
    """What the folder keeps; None unless it is whole and of the files with this fingerprint.

    Raises:
        OrchestratorError: not one image is there, or a file name leads out of the image folder.
    """
    root = source.images.resolve()
    try:
        private_folder(cache)
        index = read_index(folder)
        batch = None if index is None else open_manifest(folder, index.manifest_sha256)
        if index is None or batch is None:
            return None
        notes = batch.schema.metadata or {}
        if notes.get(_FINGERPRINT.encode()) != expected.encode():
            return None
        data = decode(read_columns(batch, OF_DATASET), index.label_map, str(root))
        findings = [
            Finding(kind, count, action, tuple(examples))
            for kind, count, action, examples in json.loads(notes[_FINDINGS.encode()])
        ]
        if data.digest != index.digest:
            return None
    except OrchestratorError:
        return None
    findings += missing_files(root, data.files, source.annotations, source.rules)
    return ReadResult(data, tuple(findings), manifest=folder.local / MANIFEST)


def _keep(folder: LocalFolder, result: ReadResult, source: str, cache: str | None) -> ReadResult:
    """Write the manifest, then the index that makes it count; both are replaced as a whole.

    Two writers of the same annotations write the same bytes. Where they differ, a manifest may end
    beside the other's index, whose SHA-256 it does not have.
    """
    data = result.dataset
    findings = [astuple(one) for one in result.findings if one.kind != MISSING_IMAGE]
    notes = {_FINGERPRINT: source, _FINDINGS: json.dumps(findings)}
    try:
        private_folder(cache)
        manifest = encode(data, notes=notes)
        index = Index(
            digest=data.digest,
            content_digest=data.content_digest,
            label_map=data.label_map,
            images=len(data),
            images_per_shard=0,
            complete=True,
            manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        )
        folder.write(MANIFEST, memoryview(manifest))
        folder.write(INDEX, index.to_json())
    except OrchestratorError as error:
        return replace(result, unkept=str(error).splitlines()[0])
    return replace(result, manifest=folder.local / MANIFEST)
