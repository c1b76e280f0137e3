"""``train.init_from``: what a run begins with, and that a resumed run does not begin again."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from rich.console import Console

from detectors.registry import build_detector, variant_config
from detectors.weights.files import read_weights
from orchestrator.accelerators import Accelerator
from orchestrator.checkpoints.initial_weights import convert_file, find_initial, load_initial
from orchestrator.checkpoints.other_run import find_state, load_state
from orchestrator.config.resolve import load_experiment
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.label_map import LabelMap
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import ConfigError, DataError, SecurityError, StorageError
from orchestrator.runs.identity import Identity, open_run
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.runs.report import say_initial
from orchestrator.storage.run_files import EVENTS, STOP
from orchestrator.tracking.events import EventLog, read_events
from orchestrator.training.job import Outcome
from orchestrator.training.session import open_store, run_rank

EXPERIMENT = """
name: tiny
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}
data:
  root: %s
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
train:
  epochs: 1
  batch_size: 4
  optimizer: {name: sgd, lr: 0.001}
  ema: {decay: 0.5, warmup_steps: 0}
tracking: {mlflow: null}
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    build_digits(folder, Recipe(train=9, val=4, seed=3))
    return folder


def plan_in(folder: Path, digits: Path, *overrides: str) -> Plan:
    folder.mkdir(exist_ok=True)
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(EXPERIMENT % json.dumps(str(digits)))
    return make_plan(load_experiment(file, overrides), folder, threads=1)


def train(plan: Plan) -> Outcome:
    return run_rank(plan.job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Plan:
    """A run of two steps, with a checkpoint and its moving average."""
    plan = plan_in(tmp_path_factory.mktemp("runs") / "teacher", digits)
    train(plan)
    return plan


def initial_note(plan: Plan) -> str:
    (note,) = (e for e in read_events(plan.job.path / "events.jsonl") if e.kind == "init_from")
    assert note.step == 0
    return note.text


def test_a_run_begins_with_the_average_of_another_one(
    teacher: Plan, tmp_path: Path, digits: Path
) -> None:
    plan = plan_in(
        tmp_path / "run", digits, f"train.init_from={teacher.job.path}", "train.optimizer.lr=1e-30"
    )
    commit = open_store(teacher.job).latest().commit
    assert commit is not None
    assert plan.job.initial is not None
    assert plan.job.initial.path == str(Path(commit.path) / "ema.safetensors")
    train(plan)
    # At this learning rate nothing but batch-norm statistics moves.
    average = safetensors.torch.load_file(plan.job.initial.path)
    trained = open_store(plan.job).load(2).model
    drawn = open_store(teacher.job).load(2).model
    for name in ("backbone.features_1.0.features.0.weight", "multi_box.multi_cls_layers.0.3.bias"):
        assert torch.equal(trained[name], average[name]), name
        assert not torch.equal(trained[name], drawn[name]), name
    text = initial_note(plan)
    assert "native: " in text.splitlines()[0]
    assert " 0 missing, 0 left over" in text.splitlines()[0]
    assert text.splitlines()[1].startswith("classes: the same 10")
    assert text.count("\nloaded ") == len(average)


def test_the_average_begins_where_the_weights_begin(
    teacher: Plan, tmp_path: Path, digits: Path
) -> None:
    overrides = (f"train.init_from={teacher.job.path}", "train.optimizer.lr=1e-30")
    plan = plan_in(tmp_path / "run", digits, *overrides)
    train(plan)
    state = open_store(plan.job).load(2)
    assert state.ema is not None
    name = "multi_box.multi_loc_layers.0.3.weight"
    torch.testing.assert_close(state.ema[name], state.model[name], rtol=1e-6, atol=0)


def test_a_resumed_run_neither_needs_nor_reads_the_file_again(
    teacher: Plan, tmp_path: Path, digits: Path
) -> None:
    source = tmp_path / "begin.safetensors"
    newest = open_store(teacher.job).commits()[-1]
    shutil.copy(Path(newest.path) / "weights.safetensors", source)
    override = f"train.init_from={source}"
    unbroken = train(plan_in(tmp_path / "unbroken", digits, override))

    class Stopping(LocalStream):
        def train_batches(self, start_step: int, stop_step: int):  # type: ignore[no-untyped-def]
            (plan.job.path / STOP).touch()
            yield from super().train_batches(start_step, stop_step)

    plan = plan_in(tmp_path / "run", digits, override)
    identity = Identity(plan.job.config_digest, plan.job.data_digest, initial=digest_of(plan))
    tree = load_experiment(tmp_path / "run.yaml", [override]).tree
    open_run(plan.job.path, identity, tree)
    first = run_rank(plan.job, Stopping(plan.batches), accelerator=Accelerator("cpu"))
    assert (first.state, first.steps) == ("preempted", 1)
    (plan.job.path / STOP).unlink()

    source.unlink()
    again = plan_in(tmp_path / "run", digits, override)
    assert again.job.config_digest == plan.job.config_digest
    assert open_run(plan.job.path, identity, tree).kind == "resume"
    second = train(again)
    assert second.resumed_from == 1
    assert second.weights_sha256 == unbroken.weights_sha256
    assert initial_note(plan).count("sha256") == 1


def digest_of(plan: Plan) -> str:
    assert plan.job.initial is not None
    return plan.job.initial.sha256


def test_other_bytes_are_another_run_and_another_place_is_not(
    teacher: Plan, tmp_path: Path, digits: Path
) -> None:
    newest = open_store(teacher.job).commits()[-1]
    identities, trees = [], []
    for name, file in (("a", "weights"), ("b", "weights"), ("c", "ema")):
        source = tmp_path / f"{name}.safetensors"
        shutil.copy(Path(newest.path) / f"{file}.safetensors", source)
        plan = plan_in(tmp_path / f"run-{name}", digits, f"train.init_from={source}")
        identities.append(
            Identity(plan.job.config_digest, plan.job.data_digest, initial=digest_of(plan))
        )
        trees.append(
            load_experiment(tmp_path / f"run-{name}.yaml", [f"train.init_from={source}"]).tree
        )
    run = tmp_path / "run"
    open_run(run, identities[0], trees[0])
    log = EventLog(run / EVENTS)
    log.note("resume", "a run in which something was done", step=0)
    log.close()
    assert open_run(run, identities[1], trees[1]).kind == "resume"
    with pytest.raises(ConfigError, match=r"train\.init_from: sha256 \w+ there, \w+ now"):
        open_run(run, identities[2], trees[2])


def test_other_classes_begin_anew_and_both_lists_are_shown(teacher: Plan) -> None:
    source = find_initial(str(teacher.job.path))
    experiment = teacher.job.experiment
    eleven = LabelMap(names=(*teacher.job.label_map.names, "hand"), ids=tuple(range(11)))
    loaded = load_initial(source, experiment, eleven)
    fresh = {str(entry.name) for entry in loaded.report.of("missing")}
    assert fresh == {
        f"multi_box.multi_cls_layers.{level}.3.{part}"
        for level in range(6)
        for part in ("weight", "bias")
    }
    assert loaded.classes[0] == "classes differ, class-dependent tensors are initialised anew"
    assert loaded.classes[1].split() == ["label", "0:", *2 * [eleven.names[0]]]
    assert loaded.classes[-1].split() == ["!", "label", "10:", "-", "hand"]
    swapped = LabelMap(names=eleven.names[9::-1], ids=tuple(range(10)))
    assert load_initial(source, experiment, swapped).report.counts["missing"] == 12
    renumbered = LabelMap(names=eleven.names[:10], ids=tuple(range(100, 110)))
    assert load_initial(source, experiment, renumbered).report.counts["missing"] == 0
    torch.manual_seed(1)
    model = build_detector(experiment.detector, num_classes=11)
    drawn = model.state_dict()["multi_box.multi_cls_layers.0.3.weight"].clone()
    loaded.put_into(model)
    assert torch.equal(model.state_dict()["multi_box.multi_cls_layers.0.3.weight"], drawn)


def test_a_foreign_file_is_converted_on_the_way(teacher: Plan, tmp_path: Path) -> None:
    """A checkpoint under the model zoo's names, whose two classes are nobody's."""
    config = teacher.job.experiment.detector
    model = build_detector(config, num_classes=2)
    endings = {"running_mean": "moving_mean", "running_var": "moving_variance"}
    norms = {n.rpartition(".")[0] for n in model.state_dict() if n.endswith("running_mean")}
    foreign = {}
    for name, tensor in model.state_dict().items():
        stem, _, ending = name.rpartition(".")
        if stem in norms:
            ending = {"weight": "gamma", "bias": "beta", **endings}.get(ending, ending)
        foreign[f"{stem}.{ending}"] = tensor
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": foreign}, path)
    loaded = load_initial(find_initial(str(path)), teacher.job.experiment, teacher.job.label_map)
    assert loaded.report.layout == "mindspore_ssd"
    assert loaded.report.counts["missing"] == loaded.report.counts["left over"] == 12
    assert "does not say which classes" in loaded.classes[1]
    (bias,) = (e for e in loaded.report.entries if e.name == "multi_box.multi_cls_layers.0.3.bias")
    assert bias.shape == (33,)

    target = tmp_path / "own.safetensors"
    fitted = convert_file(path, target, config)
    assert (fitted.num_classes, fitted.class_names) == (2, None)
    assert read_weights(target).is_native
    again = load_initial(find_initial(str(target)), teacher.job.experiment, teacher.job.label_map)
    assert again.report.counts["missing"] == 12
    assert "does not say which classes" in again.classes[1]


def test_a_file_that_changed_under_way_is_refused(teacher: Plan, tmp_path: Path) -> None:
    newest = open_store(teacher.job).commits()[-1]
    path = tmp_path / "begin.safetensors"
    shutil.copy(Path(newest.path) / "weights.safetensors", path)
    source = find_initial(str(path))
    shutil.copy(Path(newest.path) / "ema.safetensors", path)
    with pytest.raises(DataError, match="all machines have the same file"):
        load_initial(source, teacher.job.experiment, teacher.job.label_map)


def test_what_cannot_be_begun_with_is_said_before_anything_starts(
    teacher: Plan, tmp_path: Path, digits: Path
) -> None:
    with pytest.raises(DataError, match=r"train\.init_from: .*none\.pth cannot be read"):
        plan_in(tmp_path / "run", digits, f"train.init_from={tmp_path / 'none.pth'}")
    with pytest.raises(DataError, match="a folder without checkpoints"):
        plan_in(tmp_path / "run", digits, f"train.init_from={tmp_path}")
    torn = tmp_path / "torn"
    shutil.copytree(open_store(teacher.job).commits()[-1].path, torn / "ckpt" / "000000002")
    weights = torn / "ckpt" / "000000002" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match="does not match its digest"):
        find_initial(str(torn))
    module = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(1, 1), module)
    plan = plan_in(tmp_path / "run", digits, f"train.init_from={module}")
    with pytest.raises(SecurityError, match="would run code from it"):
        say_initial(plan.job, Console(file=io.StringIO()))


def test_the_console_names_what_was_not_simply_loaded(
    teacher: Plan, tmp_path: Path, digits: Path
) -> None:
    newest = open_store(teacher.job).commits()[-1]
    tensors = safetensors.torch.load_file(Path(newest.path) / "weights.safetensors")
    tensors["spare"] = torch.ones(2, 3)
    path = tmp_path / "begin.safetensors"
    safetensors.torch.save_file(tensors, path)
    plan = plan_in(tmp_path / "run", digits, f"train.init_from={path}")
    out = io.StringIO()
    say_initial(plan.job, Console(file=out, width=200))
    first, *rest = out.getvalue().splitlines()
    assert first.startswith(f"train.init_from: {path} (sha256 ")
    assert any(
        line.split()
        == ["left", "over", "spare", "2x3", "(no", "such", "tensor", "in", "the", "network)"]
        for line in rest
    )


@pytest.mark.parametrize(
    ("overrides", "warned"), [((), True), (("detector.frozen_parts=0",), False)]
)
def test_what_stays_random_for_ever_is_said(
    tmp_path: Path, digits: Path, overrides: tuple[str, ...], warned: bool
) -> None:
    rcnn = "detector={name: faster_rcnn, width: 0.125, input_size: [96, 96]}"
    plan = plan_in(tmp_path / "run", digits, rcnn, *overrides)
    out = io.StringIO()
    say_initial(plan.job, Console(file=out, width=1000))
    # Three blocks of three, and a projection.
    said = "warning: backbone.body.conv1.weight and 10 more do not train and come from no file"
    assert (said in out.getvalue()) == warned


def test_a_network_that_differs_from_that_of_its_weights_is_said(
    tmp_path: Path, digits: Path
) -> None:
    """No tensor tells: the numbers of the layers are the same."""
    config = variant_config("faster_rcnn_torchvision", input_size=(96, 96), width=0.125)
    tensors = build_detector(config, num_classes=90).state_dict()
    path = tmp_path / "released.pth"
    torch.save(tensors, path)
    fitted = convert_file(path, tmp_path / "out.safetensors", config)
    assert fitted.report.layout == "torchvision_faster_rcnn"
    assert fitted.report.advice == (
        "torchvision's fasterrcnn_resnet50_fpn was trained with detector.bn_eps: 0.0; it is 1e-05",
    )
    sound = variant_config("faster_rcnn_torchvision", input_size=(96, 96), width=0.125, bn_eps=0.0)
    assert not convert_file(path, tmp_path / "sound.safetensors", sound).report.advice


def test_a_place_that_cannot_be_written_is_no_damaged_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = variant_config("ssd300_mobilenet_v2", width=0.1)
    source = tmp_path / "w.pth"
    torch.save(build_detector(config, num_classes=2).state_dict(), source)

    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match=r"DST: .*made\.safetensors cannot be written"):
            convert_file(source, tmp_path / "made.safetensors", config)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("place", ["copy", "link"])
def test_a_checkpoint_may_have_any_name(teacher: Plan, tmp_path: Path, place: str) -> None:
    newest = Path(open_store(teacher.job).commits()[-1].path)
    best = tmp_path / "best"
    if place == "copy":
        shutil.copytree(newest, best)
    else:
        best.symlink_to(newest)
    found = find_initial(str(best))
    assert found.path == str(best / "ema.safetensors")
    assert found.sha256 == find_initial(str(newest)).sha256
    assert (
        load_initial(found, teacher.job.experiment, teacher.job.label_map).report.counts["missing"]
        == 0
    )
    state = find_state(str(best))
    assert state.sha256 == find_state(str(newest)).sha256
    assert load_state(state, teacher.job.label_map).step == 2
    if place == "copy":
        _flip_last_bit(best / "ema.safetensors")
        with pytest.raises(DataError, match="does not match its digest"):
            find_initial(str(best))
        with pytest.raises(DataError, match="does not match its digest"):
            find_state(str(best))


def _flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_damaged_file_of_a_checkpoint_is_never_begun_with(teacher: Plan, tmp_path: Path) -> None:
    copy = tmp_path / "000000002"
    shutil.copytree(open_store(teacher.job).commits()[-1].path, copy)
    file = copy / "weights.safetensors"
    assert find_initial(str(file)).kind == "commit"
    _flip_last_bit(file)
    # Nobody would see it by the numbers.
    assert read_weights(file).tensors
    with pytest.raises(DataError, match=r"weights\.safetensors: does not match its digest in"):
        find_initial(str(file))


def test_the_run_that_was_begun_with_may_go_on(tmp_path: Path, digits: Path) -> None:
    """Its best checkpoint is another one then; that which was begun with is known by its digest."""
    every = "train.checkpoint.every_steps=1"
    plan = plan_in(tmp_path / "teacher", digits, every)
    train(plan)
    store = open_store(plan.job)
    steps = [commit.step for commit in store.commits()]
    assert steps == [1, 2]
    override = f"train.init_from={plan.job.path}"

    def best_is(step: int) -> None:
        for one in steps:
            store.attach_metrics(one, {"val/AP": 0.5 if one == step else 0.1})
        store.wait()

    best_is(2)
    student = plan_in(tmp_path / "student", digits, override)
    tree = load_experiment(tmp_path / "student.yaml", [override]).tree
    identity = Identity(
        student.job.config_digest, student.job.data_digest, initial=digest_of(student)
    )
    open_run(student.job.path, identity, tree)
    best_is(1)
    assert plan_in(tmp_path / "other", digits, override).job.initial != student.job.initial
    # Before its first checkpoint it begins with what it began with,
    again = plan_in(tmp_path / "student", digits, override)
    assert again.job.initial == student.job.initial
    train(again)
    shutil.rmtree(plan.job.path / "ckpt" / "000000002")
    # and from then on the other run may keep what it likes.
    assert digest_of(plan_in(tmp_path / "student", digits, override)) == digest_of(student)
