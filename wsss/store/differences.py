"""What the configurations of artifacts differ in, by dotted key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

from wsss.differences import node_of
from wsss.pipeline import STAGES
from wsss.store.entries import Entry, Store
from wsss.store.layout import Key

TARGET = "_target_"


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Settings by dotted key; the items of a list that holds more than plain values have their position for a name.

    >>> flat({"cam": {"gamma": 2, "stages": [4]}, "steps": [{"a": 1}]})
    {'cam.gamma': 2, 'cam.stages': [4], 'steps.0.a': 1}
    """
    if isinstance(value, Mapping) and value:
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        items = enumerate(value)
    else:
        return {key: value}
    return {
        name: setting
        for part, item in items
        for name, setting in flat(item, f"{key}.{part}" if key else str(part)).items()
    }


def whole_config(store: Store, entry: Entry) -> dict[str, Any]:
    """What ``entry`` stands for: its own settings and those of all it was made from, by dotted key."""
    chain = [entry, *(store.by_key[key] for key in sorted(store.needs(entry), key=_late_first))]
    return merged(other.manifest for other in chain)


def _late_first(key: Key) -> tuple[int, str]:
    return -list(STAGES).index(key[0]), key[1]


def merged(manifests: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings in manifests, by dotted key: of a key that several have, that of the first; the last ones' first.

    >>> merged([{"config": {"labels": "predicted"}}, {"config": {"seed": 0, "labels": "refined"}}])
    {'seed': 0, 'labels': 'predicted'}
    """
    return reduce(lambda found, manifest: flat(manifest.get("config", {})) | found, manifests, {})


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What tells configurations apart: of each, the settings that others have otherwise.

    The settings of a part are compared among those that have the same part: that a refiner has settings which another
    refiner lacks is said by its name. Whose classifier is unknown is not said to have another one.

    >>> differences([{"seed": 0, "cam.gamma": 1}, {"seed": 0, "cam.gamma": 2}])
    [{'cam.gamma': 1}, {'cam.gamma': 2}]
    """
    seen: dict[tuple[Any, ...], set[str]] = {}
    keys = list(dict.fromkeys(key for config in configs for key in config))
    for config in configs:
        nodes = {node_of(key) for key in config}
        for key in keys:
            if node_of(key) in nodes:
                seen.setdefault(_part(key, config), set()).add(_text(config[key]) if key in config else "")
    return [
        {key: config[key] for key in keys if key in config and len(seen[_part(key, config)]) > 1} for config in configs
    ]


def in_common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all configurations have alike.

    >>> in_common([{"seed": 0, "cam.gamma": 1}, {"seed": 0, "cam.gamma": 2}])
    {'seed': 0}
    """
    first, *others = configs or [{}]
    return {
        key: value
        for key, value in first.items()
        if all(key in other and _text(other[key]) == _text(value) for other in others)
    }


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Keys whose settings differ, with both; ``-`` where one has none.

    What a part lacks because it is another part altogether is not told: the part is. Nor is what one of them does not
    read at all.

    >>> changed_settings({"cam.gamma": 1, "seed": 0}, {"cam.gamma": 2, "seed": 0})
    [('cam.gamma', '1', '2')]
    """
    found = []
    shared = {node_of(key) for key in before} & {node_of(key) for key in after}
    for key in dict.fromkeys([*after, *before]):
        texts = [value_text(key, config[key]) if key in config else "-" for config in (before, after)]
        same_part = _part(key, before) == _part(key, after)
        if texts[0] != texts[1] and node_of(key) in shared and (same_part or key in after):
            found.append((key, texts[0], texts[1]))
    return found


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each key by as many of its last parts as tell it apart; what is constructed goes by the name of its node.

    >>> short_keys(["cam._target_", "cam.gamma", "a.epochs", "b.epochs"])
    {'cam._target_': 'cam', 'cam.gamma': 'gamma', 'a.epochs': 'a.epochs', 'b.epochs': 'b.epochs'}
    """
    parts = {key: key.removesuffix(f".{TARGET}").split(".") for key in keys}
    names = {}
    for key, own in parts.items():
        for length in range(1, len(own) + 1):
            if own[-length].isdigit():
                continue
            if sum(other[-length:] == own[-length:] for other in parts.values()) == 1:
                break
        names[key] = ".".join(own[-length:])
    return names


def setting_words(settings: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Settings as one line: ``cam=LayerCam gamma=2``."""
    return " ".join(f"{names[key]}={value_text(key, value)}" for key, value in settings.items())


def value_text(key: str, value: Any) -> str:
    """A setting as text; what is constructed goes by its last name."""
    text = _text(value)
    return text.rpartition(".")[2] if key.endswith(TARGET) else text


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _part(key: str, config: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key, and what is constructed at each node above it."""
    nodes = key.removesuffix(f".{TARGET}").split(".")
    return key, *(config.get(".".join((*nodes[:end], TARGET))) for end in range(1, len(nodes)))
