"""What differs between the configurations of finished artifacts, by their manifests and those of what they build on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsss.artifacts import Artifact
from wsss.errors import ConfigError, CorruptArtifact, MissingArtifact
from wsss.pipeline import STAGES, TEACHER

FINGERPRINT = "fingerprint"
"""The key that tells artifacts apart whose recorded settings are the same: what differs was not recorded."""

DATA_DIGITS = 6
"""So many of the data's hash tell one set from another."""

UNKNOWN = "?"
"""What stands for data or a version that a manifest does not tell."""

_VERSIONS = frozenset(f"{step}.version" for step in (*STAGES, TEACHER))
_PARTS = ("config", "upstream", "data")
_TARGET = "_target_"


class Setting(NamedTuple):
    """What a job sets a key to.

    Attributes:
        text: as it is written in an override, for example ``[3,4,5]``.
        value: as Hydra reads it: a number, text, a list, ...
    """

    text: str
    value: Any


class Option(str):
    """The last name of what a node constructs, or the names of what a list of nodes does."""


def find(name: str, *, store: Path, prefer: str | None = None) -> Artifact:
    """The finished artifact that a name stands for: its directory; ``stage/digits`` or digits alone, in ``store``.

    Digits are a fingerprint or its beginning; a whole fingerprint wins over longer ones.

    Args:
        name: what the user wrote.
        store: where digits are looked up.
        prefer: the stage that digits alone mean where they fit one of its artifacts.

    Raises:
        ConfigError: it fits several.
        MissingArtifact: it fits none, or there is no such folder.
    """
    if (Path(name) / "manifest.json").is_file():
        return _at(name)
    stage, _, digits = name.rstrip("/").rpartition("/")
    if not digits or stage not in ("", *STAGES):
        if name and Path(name).is_dir():
            raise MissingArtifact(f"{name} is no finished artifact: it has no manifest.json")
        raise MissingArtifact(
            f"no finished artifact {name or repr(name)}: no such folder, and no <stage>/<digits> with <stage> one of "
            f"{', '.join(STAGES)}. List them: python -m wsss.store {store}"
        )
    fits = [one for one in finished(store, stage or None) if one.fingerprint.startswith(digits)]
    fits = [one for one in fits if one.stage == prefer] or fits
    fits = [one for one in fits if one.fingerprint == digits] or fits
    if len(fits) == 1:
        return fits[0]
    listed = f"List them: python -m wsss.store {store}"
    if not fits and stage:
        raise MissingArtifact(f"no finished {stage} in {store} begins with {digits}. {listed}")
    if not fits:
        raise MissingArtifact(
            f"no finished artifact {name}: neither a directory with a manifest.json nor a fingerprint in {store}. "
            f"Name its directory, or its store with --store. {listed}"
        )
    stages = dict.fromkeys(one.stage for one in fits)
    told = ", ".join(one.fingerprint if len(stages) == 1 else f"{one.stage}/{one.fingerprint}" for one in fits[:6])
    more = ", ..." if len(fits) > 6 else ""
    remedy = "Give more digits" + (f", or the stage: {fits[0].stage}/{digits}" if len(stages) > 1 else "")
    raise ConfigError(f"{name} fits {told}{more}. {remedy}")


def _at(name: str) -> Artifact:
    """The artifact in a directory.

    Raises:
        ConfigError: the directory does not lie in that of a stage.
    """
    path = Path(os.path.abspath(name))
    if path.parent.name not in STAGES:
        raise ConfigError(
            f"{path} is no artifact: it lies in {path.parent.name or '/'}, which is no stage ({', '.join(STAGES)})"
        )
    return Artifact(path.parent.parent, path.parent.name, path.name)


def finished(store: Path, stage: str | None = None) -> list[Artifact]:
    """The finished artifacts of a store, of one stage or all; whether they can be read is not looked at.

    Raises:
        MissingArtifact: there is no such folder.
    """
    if not store.is_dir():
        raise MissingArtifact(f"no folder {store.absolute()}. Name the artifact store with --store")
    return [
        Artifact(store, name, path.parent.name)
        for name in ([stage] if stage else STAGES)
        for path in sorted((store / name).glob("*/manifest.json"))
        if not path.parent.name.endswith(".old")
    ]


def read_manifest(artifact: Artifact) -> Mapping[str, Any]:
    """What a finished artifact records.

    Raises:
        CorruptArtifact: it cannot be read, is no manifest, or is that of another artifact.
    """
    found: Any = artifact.manifest
    problem = ""
    if not isinstance(found, dict) or not all(isinstance(found.get(key, {}), dict) for key in _PARTS):
        problem = "is no manifest"
    else:
        own = (artifact.stage, artifact.fingerprint.removesuffix(".old"))
        there = (found.get("stage", own[0]), found.get("fingerprint", own[1]))
        if there != own:
            problem = f"is that of {there[0]}/{there[1]}"
    if problem:
        raise CorruptArtifact(
            f"{artifact.directory / 'manifest.json'} {problem}. Delete {artifact.directory} and run its stage again"
        )
    return found


def settings(
    artifact: Artifact,
    manifest: Mapping[str, Any],
    below: Callable[[Artifact], Mapping[str, Any] | None],
    *,
    step: str | None = None,
) -> dict[str, Setting]:
    """What an artifact was made with, by dotted key, what it builds on first: configuration, data, stage versions.

    Args:
        artifact: a finished one.
        manifest: what it records.
        below: what an artifact underneath records; None where it cannot be read: its fingerprint stands in.
        step: what it is to the artifact above; None: its stage.
    """
    found: dict[str, Setting] = {}
    for need, fingerprint in manifest.get("upstream", {}).items():
        under = Artifact(artifact.root, "segmenter" if need == TEACHER else need, str(fingerprint))
        record = below(under)
        found |= (
            {need: Setting(under.fingerprint, under.fingerprint)}
            if record is None
            else settings(under, record, below, step=need)
        )
    data = manifest.get("data", {})
    if name := data.get("name"):
        found["data.name"] = Setting(str(name), name)
    digest = str(data.get("sha256") or UNKNOWN)
    found["data.sha256"] = Setting(digest[:DATA_DIGITS], digest)
    version = str(manifest.get("version", UNKNOWN))  # text: no axis of a plot
    found[f"{step or artifact.stage}.version"] = Setting(version, version)
    return found | flatten(manifest.get("config", {}))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Setting]:
    """Settings by dotted key. What a node constructs stands under the name of the node.

    >>> smoothing = [{"_target_": "wsss.refine.Superpixels", "segments": 400}]
    >>> cam = {"_target_": "wsss.cams.LayerCam", "stages": [4, 5.0]}
    >>> found = flatten({"cam": cam, "refiner": {"smoothing": smoothing}, "seed": 0})
    >>> {key: setting.text for key, setting in found.items()}
    {'cam': 'LayerCam', 'cam.stages': '[4,5]', 'refiner.smoothing': 'Superpixels', \
'refiner.smoothing.Superpixels.segments': '400', 'seed': '0'}
    """
    found: dict[str, Setting] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flatten(value, f"{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            names = [_last(item.get(_TARGET, index)) for index, item in enumerate(value)]
            found[key] = Setting("+".join(names), Option("+".join(names)))
            for short, item in zip(names, value, strict=True):
                rest = {inner: setting for inner, setting in item.items() if inner != _TARGET}
                found |= flatten(rest, f"{key}.{short}.")
        elif name == _TARGET and prefix:
            found[prefix.rstrip(".")] = Setting(_last(value), Option(_last(value)))
        else:
            found[key] = Setting(_text(value), value)
    return found


def _last(name: Any) -> str:
    return str(name).rpartition(".")[2]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{','.join(_text(item) for item in value)}]"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def differing(made_with: Sequence[Mapping[str, Setting]]) -> list[dict[str, Setting]]:
    """The same settings without those that are equal in all, and without what only says again which option was chosen.

    A key that some of them do not have, and that has one value under each option of its group (``cam``, ``refiner``,
    ...) that has it, is left out: the column of the option tells as much. So is the version of a stage, where all that
    went through the stage have the same. Settings of a part of the configuration are compared among those that have
    the part: what learnt from true masks has no classifier, which is no other classifier. A seed that follows the
    seed of all is not told again.

    >>> cam, layercam = flatten({"cam": {"_target_": "Cam"}}), flatten({"cam": {"_target_": "LayerCam", "gamma": 2}})
    >>> [list(found) for found in differing([cam, layercam])]
    [['cam'], ['cam']]
    >>> other = flatten({"cam": {"_target_": "LayerCam", "gamma": 3}})
    >>> [{key: setting.text for key, setting in found.items()} for found in differing([cam, layercam, other])]
    [{'cam': 'Cam'}, {'cam': 'LayerCam', 'cam.gamma': '2'}, {'cam': 'LayerCam', 'cam.gamma': '3'}]
    >>> differing([cam | flatten({"seed": 0}), flatten({"seed": 0})])
    [{}, {}]
    """
    keys = list(dict.fromkeys(key for found in made_with for key in found))
    texts = {key: [found[key].text if key in found else None for found in made_with] for key in keys}
    nodes = [{node_of(key) for key in found} for found in made_with]

    def differs(key: str) -> bool:
        if key.endswith(".seed") and all(
            found[key].text == found["seed"].text for found in made_with if key in found and "seed" in found
        ):
            return False
        there = [text for text, own in zip(texts[key], nodes, strict=True) if node_of(key) in own]
        return len(set(there) - ({None} if key in _VERSIONS else set())) > 1

    different = [key for key in keys if differs(key)]
    options = {key for key in different for found in made_with if key in found and isinstance(found[key].value, Option)}

    def told_by(key: str, option: str) -> bool:
        related = key.startswith(f"{option}.") or (
            key not in options and key.partition(".")[0] == option.partition(".")[0]
        )
        return related and len(set(zip(texts[option], texts[key], strict=True))) == len(set(texts[option]))

    kept = [
        key
        for key in different
        if not (None in texts[key] and any(told_by(key, option) for option in options if option != key))
    ]
    return [{key: found[key] for key in kept if key in found} for found in made_with]


def node_of(key: str) -> str:
    """The part of the configuration that stages read or leave as a whole.

    >>> node_of("cam.gamma"), node_of("recipe.classifier.optimizer.lr")
    ('cam', 'recipe.classifier')
    """
    parts = key.split(".")
    return ".".join(parts[: 1 + (parts[0] in ("recipe", "evaluation", "trainer"))])


def short_names(keys: Sequence[str], *, taken: Sequence[str] = ()) -> dict[str, str]:
    """Keys by their last part, where it is not ambiguous.

    >>> short_names(["cam.gamma", "recipe.classifier.epochs", "recipe.segmenter.epochs"])
    {'cam.gamma': 'gamma', 'recipe.classifier.epochs': 'recipe.classifier.epochs', 'recipe.segmenter.epochs': \
'recipe.segmenter.epochs'}
    """
    last = [key.rpartition(".")[2].rpartition("/")[2] for key in keys]
    return {
        key: name if last.count(name) == 1 and name not in taken else key for key, name in zip(keys, last, strict=True)
    }


__all__ = [
    "FINGERPRINT",
    "Option",
    "Setting",
    "differing",
    "find",
    "finished",
    "flatten",
    "node_of",
    "read_manifest",
    "settings",
    "short_names",
]
