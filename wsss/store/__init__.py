"""``python -m wsss.store``: what lies in the artifact store, what needs what, what may go, and whether it is sound.

    python -m wsss.store                                     a table: size, age, what differs, what is needed
    python -m wsss.store show 53cbf2f250e9                   what one artifact was made from and what was made of it
    python -m wsss.store prune --unfinished --older-than 7d  shows what would go, and asks
    python -m wsss.store verify                              reads every file of every finished artifact

Only manifests, metrics and file sizes are read, but by ``verify``. Nothing but ``prune`` writes.
"""

from wsss.store.deletion import Plan, delete, plan
from wsss.store.entries import Entry, Store
from wsss.store.integrity import verify
from wsss.store.rules import Rule
from wsss.store.scan import read_store

__all__ = ["Entry", "Plan", "Rule", "Store", "delete", "plan", "read_store", "verify"]
