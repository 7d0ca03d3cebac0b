"""What differs between the configurations of finished artifacts, by their manifests and those of what they build on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsss.artifacts import Artifact
from wsss.errors import ConfigError, MissingArtifact
from wsss.pipeline import STAGES, TEACHER

FINGERPRINT = "fingerprint"
"""The key that tells artifacts apart whose recorded configurations are the same: their code or data differs."""

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


def find(names: Iterable[str], *, store: Path) -> list[Artifact]:
    """The finished artifacts of these names: directories, or fingerprints (or the beginnings of these) in ``store``.

    Raises:
        ConfigError: a name fits several.
        MissingArtifact: a name fits none.
    """
    found = []
    for name in names:
        path = Path(name)
        if (path / "manifest.json").is_file():
            path = path.absolute()
            fits = [Artifact(path.parent.parent, path.parent.name, path.name)]
        else:
            fits = [artifact for artifact in finished(store) if artifact.fingerprint.startswith(path.name)]
        if not fits:
            raise MissingArtifact(
                f"no finished artifact {name}: neither a directory with a manifest.json nor a fingerprint in {store}. "
                f"Name its directory, or its store with --store"
            )
        if len(fits) > 1:
            raise ConfigError(f"{name} fits {', '.join(str(fit.directory) for fit in fits)}. Name one more fully")
        found += fits
    return found


def finished(store: Path, stage: str | None = None, experiment: str | None = None) -> list[Artifact]:
    """The finished artifacts of a store, the oldest first: of one stage or all, of one experiment or any."""
    found = [
        Artifact(store, name, path.parent.name)
        for name in ([stage] if stage else STAGES)
        for path in sorted((store / name).glob("*/manifest.json"))
        if not path.parent.name.endswith(".old")
    ]
    if experiment is not None:
        found = [artifact for artifact in found if artifact.manifest.get("experiment") == experiment]
    return sorted(found, key=lambda artifact: str(artifact.manifest.get("created", "")))


def settings(artifact: Artifact) -> dict[str, Setting]:
    """What an artifact was made with, by dotted key: what it builds on first.

    Of an artifact underneath that is no longer there, its fingerprint stands in.
    """
    manifest, found = artifact.manifest, dict[str, Setting]()
    for need, fingerprint in manifest.get("upstream", {}).items():
        under = Artifact(artifact.root, "segmenter" if need == TEACHER else need, fingerprint)
        found |= settings(under) if under.complete else {need: Setting(fingerprint, fingerprint)}
    if name := manifest.get("data", {}).get("name"):
        found["data.name"] = Setting(name, name)
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
    ...) that has it, is left out: the column of the option tells as much.

    >>> cam, layercam = flatten({"cam": {"_target_": "Cam"}}), flatten({"cam": {"_target_": "LayerCam", "gamma": 2}})
    >>> [list(found) for found in differing([cam, layercam])]
    [['cam'], ['cam']]
    >>> other = flatten({"cam": {"_target_": "LayerCam", "gamma": 3}})
    >>> [{key: setting.text for key, setting in found.items()} for found in differing([cam, layercam, other])]
    [{'cam': 'Cam'}, {'cam': 'LayerCam', 'cam.gamma': '2'}, {'cam': 'LayerCam', 'cam.gamma': '3'}]
    """
    keys = list(dict.fromkeys(key for found in made_with for key in found))
    texts = {key: [found[key].text if key in found else None for found in made_with] for key in keys}
    different = [key for key in keys if len(set(texts[key])) > 1]
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


__all__ = ["FINGERPRINT", "Option", "Setting", "differing", "find", "finished", "flatten", "settings", "short_names"]
