"""Every file in conf/ composes, every object in it can be built, and a mistake is answered before any work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import coco_set
import dagm_set
import pytest
import tiny
import torch
import yaml
from conftest import MakePipeline
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.optim import Optimizer

from wsss.build import build
from wsss.cli import CONF
from wsss.config import Labels, Upstream
from wsss.errors import ConfigError
from wsss.stages.context import build_recipe
from wsss.training.shells import Recipe

RECORDS = ("experiment", "sweep")
"""Folders whose files choose options of other groups; a user adds them with +FOLDER=NAME."""

FILES = [path.relative_to(CONF).with_suffix("") for path in sorted(CONF.rglob("*.yaml")) if path.parent != CONF]
OPTIONS = [(path.parent.as_posix(), path.name) for path in FILES if path.parts[0] not in RECORDS]
CHOICES = [f"+{path.parent.as_posix()}={path.name}" for path in FILES if path.parts[0] in RECORDS]
EXPERIMENTS = [choice for choice in CHOICES if choice.startswith("+experiment=")]
RECIPES = [(group, name) for group, name in OPTIONS if group.startswith("recipe/")]
GROUPS = sorted({group for group, _ in OPTIONS})


def names(group: str) -> list[str]:
    return [name for other, name in OPTIONS if other == group]


def written(group: str, name: str) -> dict[str, Any]:
    """The option file as it is written."""
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text()) or {}


def constructed(config: DictConfig, node: str) -> Iterator[str]:
    """Dotted paths of the outermost nodes at or below ``node`` that name a ``_target_``."""
    value = OmegaConf.select(config, node)
    if isinstance(value, DictConfig):
        if "_target_" in value:
            yield node
        else:
            for key in value:
                yield from constructed(config, f"{node}.{key}")


# --- composition ------------------------------------------------------------------------------------------------------


def test_the_files_are_found():
    assert {"data", "classifier", "recipe/classifier", "cam", "refiner", "segmenter", "trainer", "logger"} <= set(
        GROUPS
    )
    assert {"+experiment=demo", "+experiment=voc_layercam", "+experiment=own_voc_layout"} <= set(EXPERIMENTS)
    assert set(names("cam")) >= {"cam", "gradcam", "layercam"}
    assert set(names("refiner")) >= {"none", "superpixel", "crf"}


@pytest.mark.parametrize("choice", CHOICES)
def test_an_experiment_chooses_options_and_sets_none_of_their_values(choice: str):
    """What it would set in ``cam`` would be left in the option that a sweep puts there, which does not know it."""
    folder, _, name = choice.removeprefix("+").partition("=")
    constructs = {group for group, option in OPTIONS if "_target_" in written(group, option)}
    assert not constructs & set(written(folder, name))
    config = tiny.composed(choice)
    for group in constructs:
        assert OmegaConf.to_container(config[group]) in [written(group, option) for option in names(group)], group


@pytest.mark.parametrize("choice", ["+experiment=demo", "+experiment=voc_layercam"])
def test_an_experiment_is_valid_verbatim_for_every_script(choice: str):
    wanted = yaml.safe_load(OmegaConf.to_yaml(tiny.composed(choice)))
    for script in (*tiny.SCRIPTS, tiny.ALL):
        code, output = tiny.call(script, choice, "--cfg", "job")
        assert code == 0, output
        assert yaml.safe_load(output) == wanted, script


@pytest.mark.parametrize("choice", ["+experiment=demo", "+experiment=voc_layercam"])
def test_every_cam_can_be_swept_over_an_experiment(choice: str):
    network = build(tiny.composed(choice), "classifier", num_classes=2, weights=None)
    for name in names("cam"):
        config = tiny.composed(choice, f"cam={name}")
        assert OmegaConf.to_container(config.cam) == written("cam", name)
        build(config, "cam").check(network)


def test_the_experiments_of_the_documentation():
    demo, voc = tiny.composed("+experiment=demo"), tiny.composed("+experiment=voc_layercam")
    assert demo.data._target_ == "wsss.data.demo_set"
    assert demo.cam._target_ == voc.cam._target_ == "wsss.cams.LayerCam"
    assert voc.classifier._target_ == "wsss.models.Vgg16Classifier"
    assert (demo.upstream, demo.labels, demo.force) == (Upstream.require, Labels.refined, False)


# --- objects ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tiny_set: Path, tmp_path: Path) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Group -> overrides that replace what is not at hand, and what the stages add when they build its object."""
    folder = tmp_path / "folder"
    for name in ("one", "two"):  # of one class, in the folder named after it
        (folder / "images" / "thing").mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_set / "JPEGImages" / f"{tiny.TRAIN[0]}.jpg", folder / "images" / "thing" / f"{name}.jpg")
    return {
        "data": ([f"data.root={tiny_set}"], {}),
        "data=coco2014": (
            [f"data.root={coco_set.write_set(tmp_path / 'coco')}", f"data.cache={tmp_path / 'cache'}"],
            {},
        ),
        "data=dagm2007": ([f"data.root={dagm_set.write_set(tmp_path / 'dagm')}", "data.textures=[1,3,10]"], {}),
        "data=folder": ([f"data.root={folder}", "data.val_fraction=0.5"], {}),
        "data=demo": ([f"data.root={tmp_path}/demo", "data.train_images=2", "data.val_images=1", "data.size=64"], {}),
        "classifier": ([], {"num_classes": 3}),
        "segmenter": ([], {"num_labels": 4}),
        "affinity.network": ([], {"classifier": tiny.TinyClassifier(num_classes=3)}),
    }


@pytest.mark.parametrize(("group", "name"), OPTIONS, ids=lambda value: value)
def test_an_option_composes_and_what_it_describes_can_be_built(group: str, name: str, arguments: dict[str, Any]):
    replaced, needed = arguments.get(f"{group}={name}", arguments.get(group, ([], {})))
    config, node, keys = tiny.composed(f"{group}={name}", *replaced), group.replace("/", "."), set(written(group, name))
    composed = OmegaConf.select(config, node)
    assert set(composed) >= keys
    assert set(composed) == keys or "_target_" not in composed

    if composed.get("weights") == "imagenet":  # a download
        needed = {**needed, "weights": None}
    found = list(constructed(config, node))
    assert bool(found) == ("_target_" in (CONF / group / f"{name}.yaml").read_text())
    for path in found:
        built = build(config, path, **(arguments[path][1] if path != node and path in arguments else needed))
        assert isinstance(built, partial) or type(built).__module__.startswith("wsss")


@pytest.mark.parametrize(("group", "name"), RECIPES, ids=lambda value: value)
def test_a_recipe_trains(group: str, name: str):
    """The optimiser takes parameter groups, the schedule is a factor, the augmentation gives a square view."""
    recipe = build_recipe(tiny.composed(f"{group}={name}"), group.partition("/")[2])
    assert isinstance(recipe, Recipe)
    optimizer = recipe.optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    assert isinstance(optimizer, Optimizer)
    assert all(0 <= recipe.schedule(step, 10) <= 1 for step in range(11))
    view, _ = recipe.augment(torch.zeros(40, 50, 3, dtype=torch.uint8).numpy(), seed=0)
    assert view.shape == (3, recipe.augment.size, recipe.augment.size)
    assert (recipe.epochs or recipe.iterations) >= 1
    assert recipe.batch_size >= 1


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "sede=1",
        "seeds.scals=[1.0]",
        "trainer.acelerator=cpu",
        "recipe.classifier.epoch=1",
        "recipe.segmenter.optimizer.lrr=1",
        "cam.gama=1",
        "classifier.wieghts=null",
        "refiner.labelling.backgruond=0.2",
        "logger.csv.plce=x",
    ],
)
def test_a_mistyped_key_is_refused_when_the_configuration_is_composed(override: str):
    key = override.partition("=")[0].rpartition(".")[2]
    with pytest.raises((ConfigCompositionException, OmegaConfBaseException), match=key):
        tiny.composed(override)


@pytest.mark.parametrize(
    "override",
    [
        "seed=one",
        "labels=true_masks",
        "recipe.classifier.keep=first",
        "recipe.classifier.batch_size=1.5",
    ],
)
def test_a_value_of_another_type_is_refused_when_the_configuration_is_composed(override: str):
    key, _, value = override.partition("=")
    with pytest.raises((ConfigCompositionException, OmegaConfBaseException), match=value) as caught:
        tiny.composed(override)
    assert key.rpartition(".")[2] in str(caught.value)


def test_an_option_file_with_an_unknown_key_is_refused(tmp_path: Path):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "mine.yaml").write_text("acelerator: cpu\n")
    with pytest.raises((ConfigCompositionException, OmegaConfBaseException), match="acelerator"):
        tiny.composed(f"hydra.searchpath=[file://{tmp_path}]", "trainer=mine")


@pytest.mark.parametrize(
    ("node", "key"),
    [
        ("cam", "gama"),
        ("classifier", "wieghts"),
        ("segmenter", "encodr"),
        ("refiner", "labeling"),
        ("refiner.labelling", "backgruond"),
        ("recipe.classifier.augment", "sise"),
        ("data", "rooot"),
    ],
)
def test_an_added_key_that_a_constructor_does_not_know_is_named(node: str, key: str, tiny_set: Path):
    overrides = ("data=voc_layout", f"data.root={tiny_set}", "classifier.weights=null", "segmenter.weights=null")
    config = tiny.composed(*overrides, f"+{node}.{key}=1")
    needed = {"classifier": {"num_classes": 3}, "segmenter": {"num_labels": 4}}
    with pytest.raises(ConfigError, match=key) as caught:
        build(config, node, **needed.get(node, {}))
    assert f"{node!r}" in str(caught.value) or node == "segmenter"


TIMM = "classifier._target_=wsss.models.TimmClassifier"
MISTAKES = {
    "typed node": (["seeds.scals=[1.0]"], ["scals"]),
    "target node": (["classifier.wieghts=null"], ["wieghts"]),
    "option": (["cam=layrcam"], ["cam/layrcam", "layercam", "gradcam"]),
    "experiment": (["+experiment=dmeo"], ["experiment/dmeo", "demo", "voc_layercam", "own_voc_layout"]),
    "value": (["upstream=maybe"], ["upstream", "maybe"]),
    "added key": (["+trainer.acelerator=cpu"], ["trainer.acelerator"]),
    "missing root": (["data.root=/nowhere/at/all"], ["/nowhere/at/all", "data.root"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_a_script_with_code_2_and_a_message_before_any_work(
    mistake: str, tiny_set: Path, tmp_path: Path
):
    overrides, told = MISTAKES[mistake]
    code, output = tiny.call("train.py", *tiny.command(tiny_set, tmp_path, *overrides))
    assert code == 2, output
    assert all(part in output for part in told), output
    assert "Traceback" not in output
    assert not (tmp_path / "artifacts").exists()


TIMM = "classifier._target_=wsss.models.TimmClassifier"
UNUSABLE = {
    "typed node, added": (["+recipe.classifier.epoch=1"], ["recipe.classifier.epoch"]),
    "root, added": (["+sede=1"], ["sede"]),
    "target node, added": (["+classifier.wieghts=null"], ["wieghts", "'classifier'"]),
    "recipe node, added": (["+recipe.classifier.optimizer.lrr=1"], ["lrr", "recipe.classifier.optimizer"]),
    "logger, added": (["logger=csv", "+logger.csv.plce=x"], ["'logger'", "plce"]),
    "mandatory": (["classifier.encoder=???"], ["classifier", "encoder"]),
    "tags": (["data.tags=captions"], ["captions", "masks, xml"]),
    "weights": ([TIMM, "classifier.weights=/no/file"], ["/no/file", "weights=bundled", "weights=null"]),
    "encoder": ([TIMM, "classifier.encoder=resnet51"], ["resnet51"]),
    "target": (["classifier._target_=wsss.models.Nothing"], ["'classifier'", "Nothing"]),
    "gpu": (["trainer.accelerator=gpu"], ["GPU", "trainer=default"]),
}


@pytest.mark.parametrize("mistake", UNUSABLE)
def test_what_composes_and_cannot_be_used_is_told_before_any_work(
    mistake: str, tiny_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    overrides, told = UNUSABLE[mistake]
    with pytest.raises(ConfigError) as caught:
        tiny_pipeline(*overrides).make("classifier")
    assert all(part in str(caught.value) for part in told), caught.value
    assert not (tmp_path / "artifacts").exists()


def test_no_logger_at_all_is_none():
    assert not build(tiny.composed("logger=[]"), "logger")
    assert not build(tiny.composed("logger=none"), "logger")


def test_mandatory_root_of_a_set_of_ones_own(tmp_path: Path):
    places = [f"paths.{name}={tmp_path}/{name}" for name in ("artifacts", "data", "logs")]
    code, output = tiny.call("train.py", "+experiment=own_voc_layout", *places)
    assert code == 2, output
    assert "data.root" in output
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("+cam.gama=1", "gama"),
        ("cam.stages=[2,3,9]", "no stage 9"),
        ("seeds.precision=16-mixed", "seeds.precision=16-mixed needs a GPU"),
        ("seeds.scales=[]", "seeds.scales"),
        ("seeds.stride=0", "seeds.stride"),
        ("+refiner.labelling.backgruond=0.2", "backgruond"),
        ("refiner.labelling.background=2", "background"),
        ("segmenter._target_=wsss.models.Nothing", "Nothing"),
        ("+recipe.segmenter.optimizer.lrr=1", "lrr"),
        ("+recipe.segmenter.schedule.powr=1", "powr"),
    ],
)
def test_a_mistake_in_a_late_stage_is_told_before_the_first_begins(
    override: str, told: str, tiny_pipeline: MakePipeline, tmp_path: Path
):
    with pytest.raises(ConfigError, match=re.escape(told)):
        tiny_pipeline(override).make_all()
    assert not (tmp_path / "artifacts").exists()
