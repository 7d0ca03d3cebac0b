"""Class activation maps of single images, side by side: ``python -m wsss.show IMAGE...``."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import get_class
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import Tensor

from wsss.artifacts import write_atomically
from wsss.build import build
from wsss.cams import CamMethod, seed_scores
from wsss.cams.functional import resize_maps
from wsss.cli import CONF, INTERRUPTED, USER_ERROR
from wsss.config import register
from wsss.console import progress, quiet_libraries, setup_logging, table
from wsss.data.images import IMAGE_SUFFIXES, read_image
from wsss.data.transforms import to_tensor
from wsss.errors import ConfigError, DataError, Diverged, MissingArtifact, UserError
from wsss.models import Classifier, TimmClassifier
from wsss.models.imagenet import class_names
from wsss.pipeline import Pipeline
from wsss.stages.context import device_of
from wsss.training.shells import to_unit
from wsss.viz import Tile, encode, overlay_labels, overlay_scores, panel, resize_to

log = logging.getLogger("wsss.show")  # run as a command, this module is called __main__

CLASSIFIER = "efficientnet_lite0"
METHODS = ("cam", "gradcam", "gradcam_pp", "layercam", "zoomcam")
ALL = "all"
SLOW = ("scorecam",)
"""What ``all`` leaves out: it takes minutes."""

TOP = 2
LIKELY = 0.5
"""A class of a trained classifier is shown by itself above this probability."""

LONGEST_SIDE = 1024
"""Larger images are shrunk to it: a photograph of a camera would take minutes and gigabytes."""

FOLDER_LIMIT = 20
SUFFIX = "_cams"
TILE_WIDTH = 250
TILES_PER_LINE = 6
"""More methods than fit in one line of tiles go on in the next."""

Pairs = Iterator[tuple[Tensor, Sequence[int]]]


# --- what is shown ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A classifier to look into, and what goes with it.

    Attributes:
        network: in evaluation mode, on its device.
        title: how the panel calls it.
        names: of its classes, with the synonyms of each.
        first_number: what people call the first class: ImageNet counts from 0, data sets from 1.
        short_side: to which images are resized; None: they stay as they are.
        probabilities: of the classes, from logits ``(C,)``.
        shown: the class ids (1..C) that are shown unless somebody asks for others, from probabilities ``(C,)``.
        restore: makes a method ready that has to learn, where that was done before.
        configuration: with a method, by its name in conf/cam.
        white: the grey value of deep images that is white; None: the largest.
    """

    network: Classifier
    title: str
    names: Sequence[Sequence[str]]
    first_number: int
    short_side: int | None
    probabilities: Callable[[Tensor], Tensor]
    shown: Callable[[Tensor], list[int]]
    restore: Callable[[str, CamMethod], None]
    configuration: Callable[[str], DictConfig]
    white: int | None = None

    def name(self, class_id: int) -> str:
        """The first of the synonyms."""
        return self.names[class_id - 1][0]


@dataclass
class Picture:
    """One image on its way to a panel.

    Attributes:
        path: of the image file.
        panel: where the panel goes.
        image: ``(H, W, 3)`` uint8, as the network sees it.
        probabilities: ``(C,)``.
        class_ids: the classes that are shown.
        scores: method -> ``(K, h, w)`` in [0,1].
    """

    path: Path
    panel: Path
    image: np.ndarray
    probabilities: Tensor = field(default_factory=lambda: torch.empty(0))
    class_ids: list[int] = field(default_factory=list)
    scores: dict[str, Tensor] = field(default_factory=dict)


def imagenet(choice: str, overrides: Sequence[str], *, top: int) -> Model:
    """The ImageNet classifier of an option of conf/classifier: nothing is trained or read but its weights.

    Raises:
        ConfigError: there is no such option, it is no network that ImageNet's classes go with, or an override is not
            about the classifier.
    """
    known(choice, options("classifier"), "classifier")
    strangers = [override for override in overrides if not override.lstrip("+").startswith("classifier.")]
    if strangers:
        raise ConfigError(
            f"{strangers[0]} is not about the ImageNet classifier that --classifier asks for: only "
            f"classifier.KEY=VALUE can go with it. For a classifier that was trained here leave out --classifier"
        )
    config, _ = composed([f"classifier={choice}", *overrides])
    if not issubclass(get_class(config.classifier._target_), TimmClassifier):
        raise ConfigError(
            f"--classifier {choice} has lost the layers that ImageNet's classes go with. "
            f"Choose efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, or timm classifier.encoder=NAME"
        )
    config.classifier._target_ = "wsss.models.imagenet.ImageNetClassifier"
    network = build(config, "classifier").to(device_of(config.trainer)).eval()
    return Model(
        network=network,
        title=f"{config.classifier.encoder}, ImageNet classes"
        + ("" if config.classifier.weights else ", RANDOM weights"),
        names=class_names(),
        first_number=0,
        short_side=network.test_side,
        probabilities=lambda logits: logits.softmax(dim=0),
        shown=lambda probabilities: strongest(probabilities, top),
        restore=lambda name, method: None,
        configuration=lambda name: composed([f"cam={name}"])[0],
    )


def trained(overrides: Sequence[str], *, top: int | None) -> Model:
    """The classifier that the pipeline has trained for a configuration.

    Raises:
        ConfigError, DataError: the configuration or its data set cannot be used.
        MissingArtifact: that classifier has not been trained.
    """
    config, choices = composed(overrides)
    pipeline = Pipeline(config, overrides=overrides, experiment=choices.get("experiment"))
    artifact = pipeline.artifact("classifier")
    if not artifact.complete:
        raise MissingArtifact(
            f"no finished classifier for this configuration (looked in {artifact.directory}).\n"
            f"Run:  {pipeline.command('classifier')}     or give images alone, for a plain ImageNet classifier"
        )
    network = build(config, "classifier", num_classes=len(pipeline.data.classes), weights=None)
    artifact.read_weights(network)

    def with_method(name: str) -> list[str]:
        # values below cam belong to the method that the configuration chooses, and to no other
        own = [override for override in overrides if override.lstrip("+~").split("=")[0].split(".")[0] != "cam"]
        return list(overrides) if name == choices["cam"] else [*own, f"cam={name}"]

    def restore(name: str, method: CamMethod) -> None:
        chosen = Pipeline(
            composed(with_method(name))[0],
            overrides=with_method(name),
            experiment=pipeline.experiment,
            data=pipeline.data,
        )
        seeds = chosen.artifact("seeds")
        state = seeds.read_tensors("prototypes") if seeds.complete else None
        if state:
            method.restore(state)
        else:
            method.fit(network, _refused(chosen))  # reads nothing where nothing is to be learnt

    return Model(
        network=network.to(device_of(config.trainer)).eval(),
        title=f"classifier {artifact.fingerprint} of {pipeline.experiment}, {len(pipeline.data.classes)} classes",
        names=[(name,) for name in pipeline.data.classes],
        first_number=1,
        short_side=None,
        white=pipeline.data.white,
        probabilities=lambda logits: logits.sigmoid(),
        shown=lambda probabilities: strongest(probabilities, top or max(1, int((probabilities > LIKELY).sum()))),
        restore=restore,
        configuration=lambda name: composed(with_method(name))[0],
    )


def _refused(pipeline: Pipeline) -> Pairs:
    """No training image: what a method learns from them is to come from the seeds stage."""
    raise MissingArtifact(
        f"it learns from the training images, which the seeds stage has not done for this configuration "
        f"(looked in {pipeline.artifact('seeds').directory}).\nRun:  {pipeline.command('seeds')}"
    )
    yield


def strongest(probabilities: Tensor, count: int) -> list[int]:
    """The class ids (1..C) of the largest probabilities, largest first.

    >>> strongest(torch.tensor([0.1, 0.7, 0.2]), 2)
    [2, 3]
    """
    return [index + 1 for index in probabilities.topk(min(count, len(probabilities))).indices.tolist()]


# --- configuration ----------------------------------------------------------------------------------------------------


def composed(overrides: Sequence[str]) -> tuple[DictConfig, Mapping[str, str]]:
    """The configuration that a script would see for ``overrides``, and the option chosen in each group.

    Raises:
        ConfigError: it does not compose.
    """
    if not CONF.is_dir():
        raise ConfigError(f"no configuration at {CONF}: run from a checkout, installed with pip install --editable .")
    register()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from error
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]  # as Hydra does before it calls a script
    return config, choices


def options(group: str) -> list[str]:
    """The names of the options of a group of conf/."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def known(name: str, names: Sequence[str], what: str) -> None:
    """Raise ConfigError with names like it unless ``name`` is one of ``names``."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = (
            f"Did you mean {' or '.join(near)}?"
            if near
            else f"There are: {', '.join(names[:25])}{', ...' * (len(names) > 25)}"
        )
        raise ConfigError(f"unknown {what} {name!r}. {hint}")


def cam_methods(names: Sequence[str], model: Model) -> dict[str, CamMethod]:
    """The methods by name, each checked and ready, except for what it may have to learn from the images given.

    Asked for by name, a method that cannot work is an error; ``all`` leaves it out and says so.

    Raises:
        ConfigError, MissingArtifact: a name is unknown, or a method cannot work on this classifier.
    """
    everything = options("cam")
    asked = list(dict.fromkeys(name for name in names if name != ALL))
    for name in asked:
        known(name, everything, "method")
    extra = [name for name in everything if name not in (*SLOW, *asked)] if ALL in names else []
    methods: dict[str, CamMethod] = {}
    for name in (*asked, *extra):
        try:
            method = build(model.configuration(name), "cam")
            method.check(model.network)
            model.restore(name, method)
            methods[name] = method
        except UserError as error:
            if name in extra:
                log.warning("%s is left out: %s", name, error)
            else:
                raise type(error)(f"{name}: {error}") from error
    if not methods:
        raise ConfigError(f"none of the methods can work on this classifier: {', '.join(extra)}")
    return methods


def find_class(wanted: str, model: Model) -> int:
    """The class id (1..C) of a name, of one of its synonyms, or of a number as people count.

    Raises:
        ConfigError: no class or several classes are called so.
    """
    folded = wanted.casefold()
    called = [[name.casefold() for name in names] for names in model.names]
    # chimes are called gong too, but a gong is called so first
    found = [id for id, names in enumerate(called, 1) if folded == names[0]] or [
        id for id, names in enumerate(called, 1) if folded in names
    ]
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ", ".join(f"{id - 1 + model.first_number} ({', '.join(model.names[id - 1])})" for id in found)
        raise ConfigError(f"several classes are called {wanted}; give the number of one of them: {numbers}")
    last = model.first_number + len(model.names) - 1
    if not wanted.isdecimal():
        known(folded, list(dict.fromkeys(name for names in called for name in names)), "class")
    if not model.first_number <= int(wanted) <= last:
        raise ConfigError(f"unknown class {wanted}: the numbers go from {model.first_number} to {last}")
    return int(wanted) - model.first_number + 1


# --- files ------------------------------------------------------------------------------------------------------------


def image_paths(given: Sequence[Path]) -> list[Path]:
    """The image files named, and the first images of each folder named, each once.

    Raises:
        DataError: there is no such file, or a folder holds no image.
    """
    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = [
                item
                for item in sorted(path.iterdir())
                if item.suffix.lower() in IMAGE_SUFFIXES and not item.stem.endswith(SUFFIX)
            ]
            if not inside:
                raise DataError(f"no image in the folder {path} (looked for {', '.join(IMAGE_SUFFIXES)})")
            if len(inside) > FOLDER_LIMIT:
                log.warning("%s: the first %d of %d images; name others to see them", path, FOLDER_LIMIT, len(inside))
            paths += inside[:FOLDER_LIMIT]
        elif path.is_file():
            paths.append(path)
        else:
            raise DataError(f"no image {path}: there is no such file or folder")
    return list(dict.fromkeys(paths))


def panel_paths(images: Sequence[Path], out: Path | None) -> list[Path]:
    """Where the panel of each image goes: ``<image>_cams.png`` in a folder, or one file that was named.

    Raises:
        ConfigError: a file for several images, another format, or a panel in the place of an image given.
    """
    if out is not None and not out.is_dir() and out.suffix.lower() in IMAGE_SUFFIXES:
        if out.suffix.lower() != ".png":
            raise ConfigError(f"--out {out}: panels are PNG files; give a name that ends in .png, or a folder")
        if len(images) > 1:
            raise ConfigError(f"--out {out} is one file, but there are {len(images)} images; give a folder")
        targets = [out]
    else:
        targets, taken = [], set[str]()
        for image in images:
            name, number = f"{image.stem}{SUFFIX}.png", 2
            while name in taken:  # images of one name from several folders, or in several formats
                name, number = f"{image.stem}_{number}{SUFFIX}.png", number + 1
            taken.add(name)
            targets.append((out or Path()) / name)
    inputs = {image.resolve() for image in images}
    for target in targets:
        if target.resolve() in inputs:
            raise ConfigError(f"the panel would overwrite {target}, which is an image to look at. Choose another --out")
    return targets


def read_picture(path: Path, target: Path, short_side: int | None, *, white: int | None = None) -> Picture:
    """Read an image, resized and scaled as the network of a ``Model`` wants it.

    Raises:
        DataError: the file does not decode.
    """
    try:
        image = read_image(path, white=white)
    except DataError as error:
        raise DataError(f"{path} is no image that can be read ({error.__cause__ or error})") from error
    width, height = fitted_size(image.shape[1], image.shape[0], short_side)
    if (height, width) != image.shape[:2]:
        image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    return Picture(path, target, image)


def fitted_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height at which an image is looked at: the short side as asked for, the long one within its limit.

    >>> fitted_size(640, 480, 256), fitted_size(640, 480, None), fitted_size(4000, 3000, None)
    ((341, 256), (640, 480), (1024, 768))
    """
    factor = 1.0 if short_side is None else short_side / min(width, height)
    factor = min(factor, LONGEST_SIDE / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


# --- maps and panels --------------------------------------------------------------------------------------------------


def predict(picture: Picture, model: Model, wanted: Sequence[int]) -> None:
    """Set probabilities and classes of a picture."""
    with torch.no_grad():
        logits = model.network(_tensor(picture, model)[None])[0].float().cpu()
    picture.probabilities = model.probabilities(logits)
    picture.class_ids = list(wanted) or model.shown(picture.probabilities)


def learn(methods: Mapping[str, CamMethod], model: Model, pictures: Sequence[Picture]) -> list[str]:
    """Let methods that learn do so from the pictures and their classes; return which did."""
    learnt = []
    for name, method in methods.items():
        pairs = ((_tensor(picture, model), picture.class_ids) for picture in pictures)
        if method.fit(model.network, pairs):
            learnt.append(name)
    return learnt


def compute(
    picture: Picture, name: str, method: CamMethod, model: Model, *, scales: Sequence[float], flip: bool
) -> None:
    """Set the scores of one method.

    Raises:
        Diverged: a map is not finite.
    """
    stride = 4  # as the seeds stage keeps them by default
    try:
        (scores,) = seed_scores(
            method,
            model.network,
            [_tensor(picture, model)],
            [picture.class_ids],
            scales=scales,
            flip=flip,
            stride=stride,
        )
    except FloatingPointError as error:
        raise Diverged(f"{name} on {picture.path}: {error.args[0]}. Has the classifier been trained well?") from None
    picture.scores[name] = scores.cpu()


def _tensor(picture: Picture, model: Model) -> Tensor:
    return to_unit(to_tensor(picture.image)).to(model.network.mean.device)


def tiles(picture: Picture, model: Model, *, threshold: float | None) -> tuple[list[Tile], int]:
    """The tiles of a panel and how many stand in a line: for each class the image, then a tile for each method.

    The first tile tells the top predictions, the other images the probability of their class.
    """
    image = resize_to(picture.image, TILE_WIDTH)
    lines = -(-(1 + len(picture.scores)) // TILES_PER_LINE)
    columns = -(-(1 + len(picture.scores)) // lines)
    blank = [Tile("", np.full_like(image, 255))] * (lines * columns - 1 - len(picture.scores))
    found: list[Tile] = []
    for at, class_id in enumerate(picture.class_ids):
        top = strongest(picture.probabilities, TOP) if at == 0 else [class_id]
        found.append(Tile(", ".join(_likelihood(picture, model, id) for id in top), image))
        for name, scores in picture.scores.items():
            plane = resize_maps(scores[at : at + 1], image.shape[:2])[0].clamp(0, 1).numpy()
            silent = " (nothing found)" if plane.max() == 0 else ""
            found.append(Tile(f"{name}: {model.name(class_id)}{silent}", _painted(image, plane, threshold)))
        found += blank
    return found, columns


def _painted(image: np.ndarray, scores: np.ndarray, threshold: float | None) -> np.ndarray:
    painted = overlay_scores(image, scores)
    if threshold is None:
        return painted
    return overlay_labels(painted, (scores > threshold).astype(np.uint8), alpha=0)  # its contour alone


def _likelihood(picture: Picture, model: Model, class_id: int) -> str:
    return f"{model.name(class_id)} {100 * float(picture.probabilities[class_id - 1]):.0f} %"


# --- the command ------------------------------------------------------------------------------------------------------


def show(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[Path]:
    """Make the panels that a command line asks for, and print what was made.

    Raises:
        UserError: an image, a name or the configuration cannot be used; nothing has been written then.
    """
    paths = image_paths(arguments.images)
    targets = panel_paths(paths, arguments.out)
    plain = arguments.classifier is not None or not overrides
    if plain:
        model = imagenet(arguments.classifier or CLASSIFIER, overrides, top=arguments.top or TOP)
    else:
        model = trained(overrides, top=arguments.top)
    wanted = list(dict.fromkeys(find_class(name, model) for name in arguments.classes))
    methods = cam_methods(arguments.methods, model)
    pictures = [
        read_picture(path, target, model.short_side, white=model.white)
        for path, target in zip(paths, targets, strict=True)
    ]
    for picture in pictures:
        predict(picture, model, wanted)
    learnt = learn(methods, model, pictures) if plain else []
    title = model.title
    if learnt:
        log.info("%s learnt from the images given (%d) and their classes", ", ".join(learnt), len(pictures))
        title += f"; {', '.join(learnt)} learnt from {len(pictures)} image{'s' * (len(pictures) > 1)}"
    if arguments.threshold is not None:
        title += f"; outlined: scores from {arguments.threshold:g}"

    seconds = dict.fromkeys(methods, 0.0)
    for picture in progress(pictures, "maps", unit="img"):
        for name, method in methods.items():
            started = time.perf_counter()
            compute(picture, name, method, model, scales=arguments.scales, flip=arguments.flip)
            seconds[name] += time.perf_counter() - started
        found, columns = tiles(picture, model, threshold=arguments.threshold)
        content = encode(panel(found, columns=columns, tile_width=TILE_WIDTH, title=title), image_format="png")
        write_atomically(picture.panel, partial(_write, content))
        picture.scores.clear()  # a folder of images need not be held in memory
    rows = [(p.path.name, ", ".join(_likelihood(p, model, id) for id in p.class_ids), str(p.panel)) for p in pictures]
    table(model.title, rows, columns=("image", "classes", "panel"), wide=True)
    each = [(name, f"{total / len(pictures):.2f}") for name, total in seconds.items()]
    table("seconds an image", each)
    return targets


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """The body of ``python -m wsss.show``; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # taken out first, wherever they stand: an option that takes several names would swallow them
    overrides = [item for item in given if is_override(item)]
    options = parser().parse_args([item for item in given if not is_override(item)])
    setup_logging()
    quiet_libraries()
    try:
        show(options, overrides)
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def is_override(argument: str) -> bool:
    """Whether an argument is for Hydra: it has ``=``, is no option, and no file has that name."""
    return "=" in argument and not argument.startswith("-") and not Path(argument).exists()


EXAMPLES = """\
examples:
  python -m wsss.show photo.jpg
  python -m wsss.show photo.jpg --methods layercam zoomcam lpcam --threshold 0.3
  python -m wsss.show photo.jpg --classes "golden retriever" "tennis ball" --scales 1 0.5 1.5 --flip
  python -m wsss.show photos/ --classifier efficientnet_lite2 --out panels/
  python -m wsss.show photo.jpg --classifier timm classifier.encoder=resnet50
  python -m wsss.show photo.jpg +experiment=own_voc_layout data.root=/path/to/set

Images alone: a plain ImageNet classifier, and the classes that it finds. Images are resized, whole, to the short side
of its usual test (256 pixels for EfficientNet-Lite0); a method that learns (lpcam) learns from the images given.
With overrides: the classifier that train.py has trained for that configuration, the classes of its data set, images at
their own size (at most 1024 pixels), and lpcam as generate_seeds.py has made it.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m wsss.show",
        usage="%(prog)s IMAGE... [options] [KEY=VALUE...]",
        description="Class activation maps of images, side by side: a PNG panel for each image, with a row of tiles "
        "for each class and a tile for each method.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "images", metavar="IMAGE", nargs="+", type=Path, help=f"image file, or folder: its first {FOLDER_LIMIT} images"
    )
    made.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        default=METHODS,
        help=f"options of conf/cam ({', '.join(options('cam'))}), or {ALL}: all but {', '.join(SLOW)}. "
        f"Default: {' '.join(METHODS)}",
    )
    made.add_argument(
        "--classes", nargs="+", metavar="NAME", default=(), help="names or numbers; default: what the classifier finds"
    )
    made.add_argument(
        "--top",
        type=_count,
        metavar="N",
        help=f"show the N most probable classes; default: {TOP} of ImageNet's, or, of a trained classifier's, those "
        f"above {100 * LIKELY:.0f}%%",
    )
    made.add_argument(
        "--classifier",
        metavar="NAME",
        help=f"of the ImageNet networks in conf/classifier (efficientnet_lite0/1/2, timm); default: {CLASSIFIER}",
    )
    made.add_argument(
        "--scales", nargs="+", type=_scale, default=[1.0], metavar="S", help="sizes of the views; default: 1"
    )
    made.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, default=False, help="see each view mirrored too; default: no"
    )
    made.add_argument("--threshold", type=_share, metavar="T", help="outline where scores are T (0 to 1) or more")
    made.add_argument(
        "--out", type=Path, metavar="PATH", help=f"folder, or .png file; default: <image>{SUFFIX}.png in this folder"
    )
    return made


def _count(text: str) -> int:
    return int(_number(text, int(text) >= 1, "1 or more"))


def _scale(text: str) -> float:
    return _number(text, 0 < float(text) <= 8, "above 0 and at most 8")


def _share(text: str) -> float:
    return _number(text, 0 < float(text) <= 1, "above 0 and at most 1")


def _number(text: str, holds: bool, expected: str) -> float:
    if not holds:
        raise argparse.ArgumentTypeError(f"{text} must be {expected}")
    return float(text)


if __name__ == "__main__":
    raise SystemExit(main())
