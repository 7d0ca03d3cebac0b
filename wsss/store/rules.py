"""Which artifacts are meant."""

from __future__ import annotations

from dataclasses import dataclass

from wsss.store.entries import Entry, Store
from wsss.store.layout import RESULT, Key


@dataclass(frozen=True)
class Rule:
    """Which entries are meant: those for which all holds that is set.

    Attributes:
        stages: of these stages.
        experiments: made by these experiments.
        data: on data sets of this name.
        fingerprints: their first digits; each must mean one entry.
        older_than: seconds since they were finished or last written to.
        unfinished: without a manifest.
        unused: needed by no finished artifact, and no result themselves.
        keep_best: finished, but not among so many best of their stage and data; what was not measured is not meant.
    """

    stages: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    data: str | None = None
    fingerprints: tuple[str, ...] = ()
    older_than: float | None = None
    unfinished: bool = False
    unused: bool = False
    keep_best: int | None = None

    def select(self, store: Store) -> list[Entry]:
        """The entries that are meant.

        Raises:
            ConfigError: a fingerprint means none or several.
        """
        named = {store.find(given).key for given in self.fingerprints}
        worse = set() if self.keep_best is None else _not_best(store, self.keep_best)
        return [
            entry
            for entry in store.entries
            if (not self.stages or entry.stage in self.stages)
            and (not self.experiments or entry.experiment in self.experiments)
            and (self.data is None or entry.data[0] == self.data)
            and (not named or entry.key in named)
            and (self.older_than is None or store.age(entry) > self.older_than)
            and (not self.unfinished or entry.state == "unfinished")
            and (not self.unused or store.unused(entry) or (entry.stage in self.stages and entry.stage == RESULT))
            and (self.keep_best is None or entry.key in worse)
        ]


ANY = Rule()
"""All entries."""


def _not_best(store: Store, count: int) -> set[Key]:
    groups: dict[tuple[str, Key], list[Entry]] = {}
    for entry in store.entries:
        if entry.finished and entry.metric is not None:
            groups.setdefault((entry.stage, entry.data), []).append(entry)
    ranked = (sorted(group, key=lambda entry: (-(entry.metric or 0.0), entry.name)) for group in groups.values())
    return {entry.key for group in ranked for entry in group[count:]}
