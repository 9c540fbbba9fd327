"""Models of other benchmarks: each format is made by hand, read, kept, and judged as before."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.toys import BLOB_CLASSES, QUICK, blob_images
from torch import Generator, Tensor, nn
from typer.testing import CliRunner

from gifthorse.attacks import ATTACKS
from gifthorse.bench import imports
from gifthorse.bench.foreign import Foreign, renamings
from gifthorse.bench.imports import Adopted, Stamped, adopt, imported, known, spoken
from gifthorse.bench.judge import evaluate
from gifthorse.bench.protocol import Sizes
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import Cell
from gifthorse.cli import commands as cli
from gifthorse.core.errors import (
    BadImages,
    BadOption,
    NotApplicable,
    UnreadableModel,
    UnsafeModel,
    UsageError,
)
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.detection import DETECTORS
from gifthorse.filtering import FILTERS
from gifthorse.models import architectures as archs
from gifthorse.models.normalize import NORMALIZATIONS
from gifthorse.models.opening import load
from gifthorse.models.reading.isolation import checkpoint
from gifthorse.training import predict
from gifthorse.triggers import Patch, Wandering
from gifthorse.workflows import make as stages
from gifthorse.workflows.evaluate import eval_images, figures
from gifthorse.workflows.provenance import tensors

TARGET, HALF = 1, NORMALIZATIONS["half"]
SIZES = Sizes(fit=0.2, calibration=0.1)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def data() -> stages.DataSplits:
    train, test = blob_images(each=80, seed=0), blob_images(each=30, seed=2)
    names = tuple(map(str, range(BLOB_CLASSES)))
    return stages.DataSplits("blobs", train, blob_images(each=5, seed=1), test, names, HALF)


def infected(net: str) -> Implant:
    """A badnet on the blobs, whose trigger is exact in 8 bits."""
    recipe = {f"recipe.{k}": v for k, v in vars(QUICK).items()}
    attack = vary(ATTACKS["badnet"], {**recipe, "mixing.rate": 0.2})
    made = data()
    return stages.implant(attack, stages.fresh(net, made, rng()), made, Goal(TARGET), rng(1), Run())


@pytest.fixture(scope="module")
def tiny() -> Implant:
    return infected("tiny")


@pytest.fixture(scope="module")
def resnet() -> Implant:
    return infected("resnet20_fc")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def clean(tmp_path: Path) -> str:
    """The blobs' test images as a file."""
    test = data().test
    path = tmp_path / "test.npz"
    np.savez(path, images=test.images.permute(0, 2, 3, 1).numpy(), labels=test.labels.numpy())
    return str(path)


def state(subject: Subject) -> dict[str, Tensor]:
    return tensors(subject)


def one(found: list[Adopted]) -> Adopted:
    assert len(found) == 1
    return found[0]


def as_before(store: Store, found: Adopted, made: Implant) -> Implant:
    """Check an import against the model it was made of, on the same images."""
    assert found.error == ""
    assert found.stamped
    assert found.poisoned
    assert found.goal == Goal(TARGET)
    again, apart = imported(store, found.key, rng(), SIZES)
    assert isinstance(again, Implant)
    test = InMemory(*_bytes(apart.test), BLOB_CLASSES)
    before = figures(made.subject, eval_images(test, made))
    assert before["asr"] is not None
    assert before["asr"].value > 0.9
    assert before["asr"].trials > 40
    now = figures(again.subject, eval_images(apart.test, again))
    assert {k: now[k] for k in ("accuracy", "asr")} == {k: before[k] for k in ("accuracy", "asr")}
    return again


def _bytes(samples: Any) -> tuple[Tensor, Tensor]:
    x, y = whole(samples)
    return (x * 255).round().to(torch.uint8), y


# 1. BackdoorBench -----------------------------------------------------------------------------


def result(folder: Path, made: Implant, **changed: Any) -> Path:
    """A folder as BackdoorBench of 2023 leaves it."""
    test = data().test
    rows = (test.labels != TARGET).nonzero().flatten().tolist()
    container = {}
    for i in rows:
        x, y = test[torch.tensor([i])]
        place = folder / "bd_test_dataset" / str(int(y))
        place.mkdir(parents=True, exist_ok=True)
        pixels = (made.trigger(x)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / f"{i}.png")
        path = f"./record/{folder.name}/bd_test_dataset/{int(y)}/{i}.png"
        container[np.int64(i)] = {"path": path, "other_info": [TARGET, int(y)]}
    poison = np.zeros(len(test))
    poison[rows] = 1
    said = attack_result(made) | {
        "bd_test": {
            "bd_data_container": {
                "save_folder_path": f"./record/{folder.name}/bd_test_dataset",
                "data_dict": container,
                "save_file_format": ".png",
            },
            "getitem_all": True,
            "getitem_all_switch": False,
            "original_index_array": np.arange(len(test))[poison == 1],
            "poison_indicator": poison,
            "save_folder_path": None,
        }
    }
    torch.save(said | changed, folder / "attack_result.pt")
    return folder


def attack_result(made: Implant) -> dict[str, Any]:
    return {
        "model_name": "tiny",
        "num_classes": BLOB_CLASSES,
        "model": made.subject.net.net.state_dict(),  # type: ignore[union-attr]
        "data_path": "./data/blobs",
        "img_size": [12, 12, 3],
        "clean_data": "blobs",
        "bd_train": None,
    }


@pytest.fixture
def record(tmp_path: Path) -> Path:
    folder = tmp_path / "record" / "badnet_0_1"
    folder.mkdir(parents=True)
    return folder


def test_backdoorbench_by_path(tiny: Implant, record: Path, clean: str, store: Store) -> None:
    result(record, tiny)
    found = one(adopt(record, "auto", store, data=clean, normalize="half"))
    assert (found.label, found.net, found.data, found.images) == (
        "badnet_0_1",
        "tiny",
        "blobs",
        150,
    )
    again = as_before(store, found, tiny)
    _, mask = again.trigger.render()
    assert mask.equal((tiny.trigger.render()[1] > 0).float())


def test_backdoorbench_as_tensor(tiny: Implant, record: Path, clean: str, store: Store) -> None:
    test = data().test
    rows = (test.labels != TARGET).nonzero().flatten()
    stamped = (tiny.trigger(test[rows][0]) * 255).round()  # float, 0 to 255
    said = {
        "x": stamped,
        "y": torch.full((len(rows),), TARGET),
        "original_index": rows.numpy(),
        "original_targets": test.labels[rows],
    }
    torch.save(attack_result(tiny) | {"bd_test": said}, record / "attack_result.pt")
    path = record / "attack_result.pt"
    found = one(adopt(path, "backdoorbench", store, data=clean, normalize="half"))
    as_before(store, found, tiny)


def test_an_import_is_judged_by_defenses(
    tiny: Implant, record: Path, clean: str, store: Store
) -> None:
    found = one(adopt(result(record, tiny), "auto", store, data=clean, normalize="half"))
    made, apart = imported(store, found.key, rng(), SIZES)
    assert isinstance(made, Implant)
    strip = vary(FILTERS["strip"], {"partners": 8})
    outcome = evaluate(made, strip, apart, rng(), Run(), kind="filter")
    assert outcome.caught is not None
    assert outcome.pairs == len(outcome.scores["stamped"])
    said = evaluate(made, DETECTORS["weight_signature"], apart, rng(), Run(), kind="detector").found
    assert said is not None
    assert said.label in ("SUSPICIOUS", "NO BACKDOOR FOUND")
    said = evaluate(
        made.subject, DETECTORS["weight_signature"], apart, rng(), Run(), kind="detector"
    ).found
    assert said is not None
    assert said.label


def test_the_command_and_a_plan_of_imported_models(
    tiny: Implant,
    record: Path,
    clean: str,
    store: Store,
    tmp_path: Path,
) -> None:
    result(record, tiny)
    said = called("import", str(record), "--store", store.root, "--data", clean,
                  "--normalize", "half")  # fmt: skip
    key = said.split()[0]
    assert "ok" in said
    assert f'models = ["{key}"]' in said
    (record / "attack_result.pt").write_bytes(b"no archive")
    bad = one(adopt(record, "auto", store, data=clean, normalize="half"))
    plan = (
        "[setting]\nsizes = {fit = 0.2, calibration = 0.2, least = 20, most = 0.4}\n"
        "evaluation = {pairs = 10}\n"
        f'[[imported]]\nmodels = ["{key}", "{bad.key}"]\n'
        'defenses = ["weight_signature", {use = "strip", set = {partners = 8}}]\n'
    )
    (tmp_path / "mine.toml").write_text(plan)
    called("run", str(tmp_path / "mine.toml"), "--store", store.root, "--executor", "serial")
    every = {(r["cell"]["data"], r["cell"]["defense"] and r["cell"]["defense"]["name"]): r
             for r in store.records()}  # fmt: skip
    assert len(every) == 6
    mine = {name: r for (_, name), r in every.items() if r["models"]["implant"] == key}
    assert {r["status"] for r in mine.values()} == {"ok"}
    assert mine[None]["figures"]["asr"] >= 0.9
    assert "auroc" in mine["strip"]["figures"]
    gone = [r for r in every.values() if r["models"]["implant"] != key]
    assert {r["status"] for r in gone} == {"unsupported"}
    (tmp_path / "gone.toml").write_text(plan.replace(bad.key, "0" * 24))
    args = ["bench", "run", str(tmp_path / "gone.toml"), "--store", store.root]
    stopped = CliRunner().invoke(cli.app, [*args, "--executor", "serial"])
    assert isinstance(stopped.exception, UsageError)
    assert "import it first" in str(stopped.exception)
    assert len(list(store.records())) == 6  # nothing is said of what is not there


def test_the_command_names_what_it_does_not_know(record: Path, store: Store) -> None:
    for args, words in (
        (("--kind", "trojanzo"), "did you mean trojanzoo"),
        (("--place", "3"), "--place takes TOP,LEFT in pixels"),
    ):
        run = CliRunner().invoke(
            cli.app, ["bench", "import", str(record), "--store", store.root, *args]
        )
        assert words in str(run.exception)


def called(*args: str) -> str:
    run = CliRunner().invoke(cli.app, ["bench", *args])
    assert run.exit_code == 0, run.output
    return run.stdout


def test_parts_do_not_overlap(tiny: Implant, record: Path, clean: str, store: Store) -> None:
    found = one(adopt(result(record, tiny), "auto", store, data=clean, normalize="half"))
    _, apart = imported(store, found.key, rng(), SIZES, test=20)
    parts = [_bytes(part)[0] for part in (apart.fit, apart.calibration, apart.test)]
    rows = [{image.numpy().tobytes() for image in part} for part in parts]
    assert [len(r) for r in rows] == [50, 25, 20]
    assert len(set.union(*rows)) == 95
    assert set(_bytes(apart.test)[1].tolist()) == set(range(BLOB_CLASSES))


def test_fewer_images_keep_their_stamps(
    tiny: Implant, record: Path, clean: str, store: Store
) -> None:
    result(record, tiny)
    found = one(adopt(record, "auto", store, data=clean, normalize="half", images=130))
    assert found.images == 130
    as_before(store, found, tiny)


def test_importing_twice_gives_one_model(
    tiny: Implant, record: Path, clean: str, store: Store
) -> None:
    result(record, tiny)
    first, second = (
        one(adopt(record, "auto", store, data=clean, normalize="half")) for _ in range(2)
    )
    assert first == second
    assert store.models() == {first.key}
    assert first.key != one(adopt(record, "auto", store, data=clean, normalize="none")).key


def test_a_record_says_what_was_imported(
    tiny: Implant, record: Path, clean: str, store: Store
) -> None:
    found = one(adopt(result(record, tiny), "auto", store, data=clean, normalize="half"))
    said = spoken(store, Cell(f"import:{found.key}", "", None, None, 0))
    assert (said["data"], said["net"]) == ("backdoorbench:blobs", "tiny")
    assert said["attack"]["label"] == "badnet_0_1"
    assert said["attack"]["family"] == "attack"
    assert said["attack"]["options"]["target"] == str(TARGET)
    with store.open(found.key) as folder:
        opened = load(folder / "model.safetensors")
    text = opened.origin.metadata["description"]
    assert "not made by gifthorse" in text
    assert known(store, found.key)["origin"]["sha256"] in text


def test_several_targets_leave_the_images_aside(
    tiny: Implant, record: Path, clean: str, store: Store
) -> None:
    result(record, tiny)
    said = checkpoint(record / "attack_result.pt")
    entries = said["bd_test"]["bd_data_container"]["data_dict"].values()
    for entry in entries:
        entry["other_info"][0] = (entry["other_info"][1] + 1) % BLOB_CLASSES
    torch.save(said, record / "attack_result.pt")
    found = one(adopt(record, "auto", store, data=clean, normalize="half"))
    assert not found.stamped
    assert found.goal is None
    assert "targets" in " ".join(found.notes)
    model, _ = imported(store, found.key, rng(), SIZES)
    assert isinstance(model, Subject)
    assert known(store, found.key)["truth"]["poisoned"]


def refused(store: Store, found: Adopted, *words: str) -> None:
    """Check that a model was refused in these words, and that its cells would be."""
    assert found.status == "unsupported"
    for word in words:
        assert word in found.error, found.error
    with pytest.raises(NotApplicable, match="cannot be judged"):
        imported(store, found.key, rng(), SIZES)


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A data set as some versions pickle whole."""


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_objects_inside_are_refused_by_name(
    tiny: Implant, record: Path, clean: str, store: Store, tmp_path: Path
) -> None:
    picture = Image.new("RGB", (12, 12))
    old = {"x": [picture], "y": [TARGET], "original_index": [0], "original_targets": [0]}
    result(record, tiny, bd_test=old)
    refused(store, one(adopt(record, "auto", store, data=clean)), "PIL", "would run the code")
    result(record, tiny, bd_test=Images())
    refused(store, one(adopt(record, "auto", store, data=clean)), "test_imports.Images")
    marker = tmp_path / "marker"
    result(record, tiny, bd_train=Hostile(f"touch {marker}"))
    refused(store, one(adopt(record, "auto", store, data=clean)), "system", "nothing was run")
    assert not marker.exists()


def test_damaged_results_are_refused(tiny: Implant, record: Path, clean: str, store: Store) -> None:
    path = result(record, tiny) / "attack_result.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(store, one(adopt(record, "auto", store, data=clean)), "truncated")
    path.write_bytes(whole[:40_000] + bytes([whole[40_000] ^ 255]) + whole[40_001:])
    refused(store, one(adopt(record, "auto", store, data=clean)), "checksum")
    path.write_bytes(b"")
    refused(store, one(adopt(record, "auto", store, data=clean)), "empty")
    torch.save([1, 2], path)
    refused(store, one(adopt(record, "auto", store, data=clean)), "no dictionary")
    for model in ({"a": 1}, {3: torch.ones(1)}, torch.ones(2), None, [1]):
        torch.save({"model": model}, path)
        refused(store, one(adopt(record, "auto", store, data=clean)), "no state dict")
    for test in ({0: {"path": 1}}, {2**70: {"path": "a", "other_info": [1, 1]}}, [1], {0: 5}):
        said = {"bd_test": {"bd_data_container": {"data_dict": test}}}
        torch.save(attack_result(tiny) | said, path)
        refused(store, one(adopt(record, "auto", store, data=clean)), "malformed")
    x = {"x": torch.ones(2, 3, 12, 12), "y": torch.ones(2), "original_index": [1, 2**80]}
    other: dict[str, Any] = {"bd_test": {**x, "original_targets": torch.ones(1)}}
    torch.save(attack_result(tiny) | other, path)
    refused(store, one(adopt(record, "auto", store, data=clean)), "malformed")


def test_images_must_be_those_that_were_stamped(
    tiny: Implant, record: Path, store: Store, tmp_path: Path
) -> None:
    test = data().test
    images, labels = test.images.permute(0, 2, 3, 1).numpy(), test.labels.numpy()
    result(record, tiny)
    refused(store, one(adopt(record, "auto", store)), "without clean images")
    np.savez(tmp_path / "other.npz", images=images, labels=np.roll(labels, 1))
    other = str(tmp_path / "other.npz")
    refused(store, one(adopt(record, "auto", store, data=other)), "labels differ")
    np.savez(other, images=images[:50], labels=labels[:50])
    refused(store, one(adopt(record, "auto", store, data=other)), "beyond the 50")


def test_paths_stay_in_the_folder(tiny: Implant, record: Path, clean: str, store: Store) -> None:
    result(record, tiny)
    outside = record.parent / "secret.png"
    Image.new("RGB", (12, 12)).save(outside)
    entries = {
        i: {"path": path, "other_info": [TARGET, int(data().test.labels[i])]}
        for i, path in enumerate(["../secret.png", str(outside), "a/../../secret.png", "\0"])
    }
    result(record, tiny, bd_test={"bd_data_container": {"data_dict": entries}})
    found = one(adopt(record, "auto", store, data=clean, normalize="half"))
    assert not found.stamped
    assert found.notes == ("4 of 4 stamped images cannot be read",)


# 2. TrojanZoo ---------------------------------------------------------------------------------


def zoo(made: Implant, folder: Path, stem: str = "square_white_tar1_alpha1.00_mark(3,3)") -> Path:
    """A `.pth` under TrojanZoo's names for folders and tensors."""
    place = folder / "image" / "blobs" / "resnet20_comp" / "badnet"
    place.mkdir(parents=True, exist_ok=True)
    own = state(made.subject)
    named = {("classifier." if k.startswith("fc.") else "features.") + k: t for k, t in own.items()}
    torch.save(OrderedDict(named), place / f"{stem}.pth")
    return place / f"{stem}.pth"


def corner(made: Implant) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """The patch of a trigger, its opacity and place."""
    assert isinstance(made.trigger, Patch)
    rows, cols = made.trigger.mask[0].nonzero().T
    cut = (slice(None), slice(rows.min(), rows.max() + 1), slice(cols.min(), cols.max() + 1))
    top, left = int(rows.min()), int(cols.min())
    return made.trigger.pattern[cut], made.trigger.mask[cut], (top, left)


def test_trojanzoo(resnet: Implant, tmp_path: Path, clean: str, store: Store) -> None:
    path = zoo(resnet, tmp_path)
    pattern, mask, place = corner(resnet)
    np.save(path.with_suffix(".npy"), torch.cat([pattern, mask]).numpy())
    found = one(adopt(path, "auto", store, data=clean, normalize="half", place=place))
    assert (found.label, found.net, found.data) == ("badnet", "resnet20_fc", "blobs")
    again = as_before(store, found, resnet)
    for a, b in zip(again.trigger.render(), resnet.trigger.render(), strict=True):
        assert (a * again.trigger.render()[1]).equal(b * resnet.trigger.render()[1])
    elsewhere = one(adopt(path, "auto", store, data=clean, normalize="half"))
    other, _ = imported(store, elsewhere.key, rng(), SIZES)
    assert isinstance(other, Implant)
    assert other.trigger.render()[1][0, 0, 0] == 1


def test_trojanzoo_of_before_2022(
    resnet: Implant, tmp_path: Path, clean: str, store: Store
) -> None:
    path = zoo(resnet, tmp_path, "square_white_tar1_alpha0.00_mark(3,3)")
    pattern, mask = resnet.trigger.render()
    np.savez(path.with_suffix(".npz"), mark=pattern, mask=mask[0], alpha_mask=mask[0])
    found = one(adopt(path.parent, "auto", store, data=clean, normalize="half"))
    as_before(store, found, resnet)


def test_opacity_and_wandering(resnet: Implant, tmp_path: Path, clean: str, store: Store) -> None:
    pattern, mask, _ = corner(resnet)
    whole = torch.cat([pattern, mask]).numpy()
    for stem, kind in (
        ("square_white_tar1_alpha0.25_mark(3,3)", Patch),
        ("scattered_randompos_square_white_tar1_alpha0.25_mark(3,3)", Wandering),
    ):
        path = zoo(resnet, tmp_path, stem)
        np.save(path.with_suffix(".npy"), whole)
        found = one(adopt(path, "auto", store, data=clean, normalize="half"))
        made, _ = imported(store, found.key, rng(), SIZES)
        assert isinstance(made, Implant)
        assert isinstance(made.trigger, kind)
        assert made.trigger.render()[1].amax() == 0.25


@pytest.mark.parametrize(
    ("net", "theirs"),
    [
        ("vgg11_bn_fc", {"classifier.0": "classifier.fc1", "classifier.3": "classifier.fc2"}),
        ("vgg11_bn_cifar", {"classifier": "classifier.fc"}),
        ("vgg16", {}),
        ("resnet18_cifar_fc", {"fc": "classifier.fc", "": "features."}),
        ("resnet50", {"fc": "classifier.fc", "": "features."}),
        ("densenet121", {"classifier": "classifier.fc"}),
        ("mobilenetv2", {}),
    ],
)
def test_names_of_tensors(net: str, theirs: dict[str, str]) -> None:
    with torch.device("meta"):
        own = archs.shapes_of(archs.build(net, 7).state_dict())
    if net == "vgg11_bn_fc":
        theirs = {**theirs, "classifier.6": "classifier.fc3"}
    renamed = {}
    for name, shape in own.items():
        front = next((f for f in theirs if name.startswith(f)), None)
        renamed[name if front is None else theirs[front] + name.removeprefix(front)] = shape
    assert (set(renamed) != set(own)) == bool(theirs)
    found = [guess for guess in map(archs.find, renamings(renamed)) if guess is not None]
    assert found[0].classes == 7
    assert net in (found[0].arch, *found[0].ties)


def test_what_trojanzoo_leaves_open_is_said(
    resnet: Implant, tmp_path: Path, clean: str, store: Store
) -> None:
    path = zoo(resnet, tmp_path, "some_net")
    refused(store, one(adopt(path, "auto", store, data=clean)), "no target")
    path = zoo(resnet, tmp_path, "square_white_tar77_alpha1.00_mark(3,3)")
    refused(store, one(adopt(path, "auto", store, data=clean)), "none of its 5 classes")
    path = zoo(resnet, tmp_path)
    np.save(path.with_suffix(".npy"), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    found = one(adopt(path, "auto", store, data=clean))
    assert not found.stamped
    assert "cannot be read" in found.notes[0]
    assert "normalized" in found.notes[1]
    assert not found.error
    np.save(path.with_suffix(".npy"), np.ones((4, 13, 3), np.float32))
    refused(store, one(adopt(path, "auto", store, data=clean)), "does not fit")
    torch.save({"features.odd": torch.zeros(2)}, path)
    refused(store, one(adopt(path, "auto", store, data=clean)), "no known architecture")
    torch.save(nn.Linear(2, 2), path)
    refused(store, one(adopt(path, "auto", store, data=clean)), "whole pickled model")


def test_clean_nets_of_trojanzoo(resnet: Implant, tmp_path: Path, clean: str, store: Store) -> None:
    path = zoo(resnet, tmp_path)
    place = tmp_path / "model" / "image" / "blobs"
    place.mkdir(parents=True)
    path.rename(place / "resnet20_comp.pth")
    found = one(adopt(tmp_path / "model", "auto", store, data=clean, normalize="half"))
    assert not found.poisoned
    assert found.error == ""
    assert spoken(store, Cell(f"import:{found.key}", "", None, None, 3))["attack"] is None


def test_input_aware_has_a_target_and_no_trigger(
    resnet: Implant, tmp_path: Path, clean: str, store: Store
) -> None:
    path = zoo(resnet, tmp_path, "tar1 poison0.10 cross0.10")
    torch.save({}, path.with_name(f"{path.stem}_mask.pth"))
    found = one(adopt(path.parent, "auto", store, data=clean, normalize="half"))
    assert found.goal == Goal(TARGET)
    assert found.poisoned
    assert not found.stamped


# 3. TrojAI ------------------------------------------------------------------------------------

CONFIG = {
    "py/object": "round_config.RoundConfig",
    "py/state": {
        "poisoned": True,
        "number_classes": BLOB_CLASSES,
        "model_architecture": "classification:mobilenet_v2",
        "source_dataset": "cityscapes",
        "triggers": [
            {
                "py/object": "trigger_config.PolygonTriggerConfig",
                "py/state": {"source_class": 3, "target_class": 2},
            }
        ],
    },
}


def round_folder(folder: Path, model: object, truth: str = "1\n") -> Path:
    """A model's folder as NIST hands it out."""
    test = data().test
    for part, label in (("clean-example-data", None), ("poisoned-example-data", 2)):
        (folder / part).mkdir(parents=True)
        for i in range(0, len(test), 3):
            Image.fromarray(test.images[i].permute(1, 2, 0).numpy()).save(
                folder / part / f"{i}.png"
            )
            said = int(test.labels[i]) if label is None else label
            (folder / part / f"{i}.json").write_text(json.dumps(said))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "ground_truth.csv").write_text(truth)
    torch.save(model, folder / "model.pt")
    return folder


def test_trojai_whose_nets_are_not_known(tmp_path: Path, store: Store) -> None:
    round_folder(tmp_path / "models" / "id-00000000", nn.Sequential(nn.Conv2d(3, 4, 3)))
    round_folder(tmp_path / "models" / "id-00000001", nn.Linear(3, 2), "0\n")
    bad, good = adopt(tmp_path, "auto", store)
    for found in (bad, good):
        refused(store, found, "no known architecture")
        assert (found.net, found.data) == ("classification:mobilenet_v2", "cityscapes")
    assert bad.poisoned
    assert bad.goal == Goal(2, 3)
    assert bad.label == "PolygonTriggerConfig"
    assert not good.poisoned
    assert good.goal is None
    assert "poisoned examples" in bad.notes[0]
    said = spoken(store, Cell(f"import:{bad.key}", "", None, None, 0))
    assert said["attack"]["options"]["targets"] == "2"


def test_trojai_with_hostile_code(tmp_path: Path, store: Store) -> None:
    marker = tmp_path / "marker"
    round_folder(tmp_path / "id-00000000", Hostile(f"touch {marker}"))
    refused(store, one(adopt(tmp_path, "auto", store)), "system", "nothing was run")
    assert not marker.exists()


def test_trojai_with_plain_weights(tiny: Implant, tmp_path: Path, store: Store) -> None:
    round_folder(tmp_path / "id-00000000", state(tiny.subject))
    found = one(adopt(tmp_path, "trojai", store, normalize="half"))
    assert found.error == ""
    assert found.images == 50
    assert not found.stamped
    made, apart = imported(store, found.key, rng(), SIZES)
    assert isinstance(made, Subject)
    x, y = whole(apart.test)
    assert predict(made, x).allclose(predict(tiny.subject, x), atol=1e-4)
    assert (predict(made, x).argmax(1) == y).float().mean() > 0.8


def test_damaged_folders_of_trojai(tiny: Implant, tmp_path: Path, store: Store) -> None:
    folder = round_folder(tmp_path / "id-00000000", state(tiny.subject), "maybe")
    refused(store, one(adopt(folder, "trojai", store)), "ground_truth.csv")
    (folder / "ground_truth.csv").write_text("1")
    (folder / "config.json").write_text("[" * 100_000)
    refused(store, one(adopt(folder, "trojai", store)), "no JSON")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for file in (folder / "clean-example-data").glob("*.json"):
        file.write_text("4711")
    refused(store, one(adopt(folder, "trojai", store)), "5 classes")


# 4. Parts -------------------------------------------------------------------------------------


def test_a_checkpoint_reads_as_torch_reads_it(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    said = {
        "plain": base,
        "view": base[1:, ::2],
        "turned": base.T,
        "spread": torch.ones(1).expand(3, 2),
        "half": base.half(),
        "brain": base.bfloat16(),
        "long": torch.tensor(3),
        "bool": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
        "deep": OrderedDict(a=[1, (2.5, "x"), None, True]),
        "ints": np.arange(6).reshape(2, 3),
        "turned ints": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "number": np.float64(0.5),
        np.int64(7): "key",
    }
    torch.save(said, tmp_path / "a.pt")
    read = checkpoint(tmp_path / "a.pt")
    assert list(read) == [int(k) if isinstance(k, np.int64) else k for k in said]
    for key, value in said.items():
        if isinstance(value, Tensor):
            assert read[key].dtype == value.dtype
            assert read[key].equal(value.detach())
        elif isinstance(value, np.ndarray):
            assert read[key].dtype == value.dtype
            assert (read[key] == value).all()
    assert read["deep"] == {"a": [1, [2.5, "x"], None, True]}
    assert read["number"] == 0.5
    assert read[7] == "key"
    assert list(checkpoint(tmp_path / "a.pt", ("long", "absent"))) == ["long"]


def test_a_checkpoint_refuses_what_needs_code(tmp_path: Path) -> None:
    path, marker = tmp_path / "a.pt", tmp_path / "marker"
    torch.save({"a": Hostile(f"touch {marker}")}, path)
    with pytest.raises(UnsafeModel, match="system"):
        checkpoint(path)
    torch.save({"a": np.array([Hostile(f"touch {marker}")], dtype=object)}, path)
    with pytest.raises(UnsafeModel, match="system"):
        checkpoint(path)
    path.write_bytes(pickle.dumps(Hostile(f"touch {marker}")))
    with pytest.raises(UnsafeModel):
        checkpoint(path)
    torch.save({"a": np.array(["x", 1], dtype=object)}, path)
    with pytest.raises(UnreadableModel, match="other things than numbers"):
        checkpoint(path)
    torch.save({"a": torch.ones(1).expand(100_000, 100_000)}, path)
    with pytest.raises(UnreadableModel, match="far more"):
        checkpoint(path)
    assert not marker.exists()


def test_stamped_images_are_a_trigger() -> None:
    clean = torch.randint(50, 100, (20, 3, 12, 12), generator=rng()).to(torch.uint8)
    stamped, mask = clean.clone(), torch.zeros(1, 12, 12)
    stamped[..., 2] += 20
    mask[..., 2] = 1
    trigger, x = Stamped(clean, stamped), clean / 255
    order = torch.randperm(20, generator=rng())
    assert trigger(x[order]).equal(stamped[order] / 255)
    assert trigger.render()[1].equal(mask)
    shuffled = trigger.shuffled(rng())
    change, moved = ((t(x) * 255).round() - clean for t in (trigger, shuffled))
    assert change.flatten(1).sort(1).values.equal(moved.flatten(1).sort(1).values)
    assert not change.equal(moved)
    with pytest.raises(BadImages, match="no others"):
        trigger(x.flip(3))


def test_what_is_not_there(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError, match="check the path"):
        adopt(tmp_path / "absent", "auto", store)
    with pytest.raises(UsageError, match="no attack_result"):
        adopt(tmp_path, "auto", store)
    with pytest.raises(BadOption, match="timm"):
        adopt(tmp_path, "auto", store, arch="evil.py:net")
    with pytest.raises(UsageError, match="no normalization"):
        adopt(tmp_path, "auto", store, normalize="hlaf")
    with pytest.raises(UsageError, match="import it first"):
        imported(store, "0" * 24, rng(), SIZES)


def test_a_store_cannot_name_code(
    tiny: Implant, record: Path, clean: str, store: Store, tmp_path: Path
) -> None:
    found = one(adopt(result(record, tiny), "auto", store, data=clean))
    spec = known(store, found.key)
    (tmp_path / "evil.py").write_text("raise SystemExit\n")
    spec["cell"]["net"] = f"{tmp_path / 'evil.py'}:net"
    name = next(n for n in store.names("models") if n.endswith("spec.json"))
    store.write(name, json.dumps(spec).encode())
    with pytest.raises(UsageError, match="not of a library"):
        imported(store, found.key, rng(), SIZES)


@pytest.mark.parametrize("error", [OverflowError("10^30"), TypeError("odd"), UsageError("words")])
def test_one_malformed_model_concerns_no_other(error: Exception, tmp_path: Path) -> None:
    def tells(path: Path) -> Foreign:
        raise error

    told = imports._surely("trojai", tells, tmp_path / "model.pt")
    assert str(error) in told.error
    assert told.opened is None
