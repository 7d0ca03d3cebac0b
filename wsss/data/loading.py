"""From a data set to batches: every view is a function of (seed, epoch, image) and of nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from wsss import distributed
from wsss.data.base import ImageSet
from wsss.data.transforms import Augment, to_tensor
from wsss.errors import DataError

Batch = dict[str, Tensor]
MaskReader = Callable[[str], np.ndarray]


def cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(wanted: int | None, *, most: int) -> int:
    """The configured number of processes, or as many as the cores allow, but not more than ``most``."""
    return wanted if wanted is not None else max(0, min(most, cores()))


def stable_seed(*parts: int) -> int:
    """A 63-bit seed from whole numbers, the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(epoch, index)`` in an order drawn from ``(seed, epoch)``, each rank its own share.

    Because the epoch travels with the index, a dataset draws the same view of an image whatever the number of
    workers, and a run that resumes at epoch 3 sees what it would have seen without the interruption. Lightning calls
    ``set_epoch``. The last images are dropped so that every rank has the same number, and every optimizer step full
    batches.

    Args:
        count: images of the split.
        seed: of the run.
        batch_size: images of one forward pass.
        accumulate: forward passes of one optimizer step.
    """

    def __init__(self, count: int, *, seed: int, batch_size: int, accumulate: int = 1) -> None:
        self.seed = seed
        self.epoch = 0
        self.count = count
        self.batch_size, self.accumulate = batch_size, accumulate
        self.skip = 0  # images of the next pass that are done already
        self.rank, self.ranks = distributed.rank(), distributed.world()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        share = self.count // self.ranks
        units = (self.batch_size * self.accumulate, self.batch_size, 1)
        return next((share - share % unit for unit in units if share >= unit), 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng(stable_seed(self.seed, self.epoch)).permutation(self.count)
        skip, self.skip = self.skip, 0
        for index in order[self.rank :: self.ranks][skip : len(self)]:
            yield self.epoch, int(index)


class EpochLoader(DataLoader[Batch]):
    """A loader over an ``EpochSampler`` that can begin in the middle of an epoch.

    Lightning keeps its state in every checkpoint. Its length is that of a whole epoch in any case. A pass begins to
    read when its first batch is asked for: by then Lightning has told the sampler which epoch it is.
    """

    start = 0
    """Batches that the next pass leaves out, because they were trained on before the checkpoint."""

    done = 0
    """Batches handed out of this epoch, those left out included; what loader processes have read ahead is not."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.done, self.start = self.start, 0
        self.sampler.skip = self.done * self.batch_size  # type: ignore[attr-defined, operator]
        for batch in super().__iter__():
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The batches done of the epoch; 0 after its end."""
        return {"batch": self.done if self.done < len(self) else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next pass begin behind the batches done."""
        self.start = state_dict["batch"]


class TrainingViews(Dataset[Batch]):
    """Random views of a split, with tags and, where asked for, masks.

    Items hold ``image`` ``(3, size, size)`` uint8, ``tags`` ``(C,)`` and, with ``masks``, ``labels`` ``(size, size)``
    uint8: ``DataModule`` makes them int64 where the loss is computed. On the way there, from a loader process and to a
    GPU, they have an eighth of the bytes.

    Args:
        data: the set.
        ids: the images.
        augment: draws the views.
        seed: of the run.
        masks: reads the mask to learn from, ``(H, W)`` uint8; None where only tags are learnt from.
    """

    def __init__(
        self, data: ImageSet, ids: Sequence[str], *, augment: Augment, seed: int, masks: MaskReader | None = None
    ) -> None:
        self.data, self.ids, self.augment, self.seed, self.masks = data, tuple(ids), augment, seed, masks

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        sample = self.data.sample(self.ids[index])
        mask = self.masks(sample.id) if self.masks else None
        try:
            view, labels = self.augment(sample.image, mask, seed=stable_seed(self.seed, epoch, index))
        except DataError as error:
            raise DataError(f"{self.data.image_path(sample.id)}: {error}") from None
        batch = {"image": view, "tags": tag_vector(sample.class_ids, len(self.data.classes))}
        return batch if labels is None else {**batch, "labels": labels}


class WholeImages(Dataset[Batch]):
    """Images as they are, one a batch: their sizes differ.

    Items hold ``index`` (position in ``ids``), ``image`` ``(3, H, W)`` uint8 and ``tags`` ``(C,)``.
    """

    def __init__(self, data: ImageSet, ids: Sequence[str]) -> None:
        self.data, self.ids = data, tuple(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Batch:
        sample = self.data.sample(self.ids[index])
        tags = tag_vector(sample.class_ids, len(self.data.classes))
        return {"index": torch.tensor(index), "image": to_tensor(sample.image), "tags": tags}


class ImageGroups(Dataset[list[Batch]]):
    """Several whole images an item, not stacked.

    Args:
        images: the images.
        groups: positions in ``images`` for each item.
    """

    def __init__(self, images: WholeImages, groups: Sequence[Sequence[int]]) -> None:
        self.images, self.groups = images, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> list[Batch]:
        return [self.images[at] for at in self.groups[index]]


def tag_vector(class_ids: Sequence[int], num_classes: int) -> Tensor:
    """Class ids in 1..C to a ``(C,)`` float vector of zeros and ones.

    >>> tag_vector((1, 3), 4).tolist()
    [1.0, 0.0, 1.0, 0.0]
    """
    tags = torch.zeros(num_classes)
    tags[[id - 1 for id in class_ids]] = 1.0
    return tags


class DataModule(pl.LightningDataModule):
    """Training views and whole validation images of one data set.

    Args:
        data: the set.
        augment: draws the training views.
        batch_size: training images per step and process.
        workers: loader processes; None takes what the cores allow.
        seed: of the run.
        masks: reads the masks to learn from; None for a classifier.

    Attributes:
        accumulate: training batches of one optimizer step, of which an epoch holds whole ones; ``fit`` sets it.
    """

    def __init__(
        self,
        data: ImageSet,
        *,
        augment: Augment,
        batch_size: int,
        seed: int,
        workers: int | None = None,
        masks: MaskReader | None = None,
    ) -> None:
        super().__init__()
        self.data, self.augment, self.batch_size, self.seed, self.masks = data, augment, batch_size, seed, masks
        self.accumulate = 1
        # On two cores a worker process takes from training what it saves in loading.
        self.workers = worker_count(workers, most=min(8, cores() // distributed.local_world() - 2))

    @property
    def batches(self) -> int:
        """Training batches of an epoch, in each process."""
        return -(-len(self._sampler()) // self.batch_size)

    def train_dataloader(self) -> EpochLoader:
        """Augmented batches: ``image`` uint8, ``tags`` float, and ``labels`` uint8 where masks are learnt from."""
        views = TrainingViews(
            self.data, self.data.ids(self.data.train), augment=self.augment, seed=self.seed, masks=self.masks
        )
        return EpochLoader(views, batch_size=self.batch_size, sampler=self._sampler(), **self._options())

    def val_dataloader(self) -> DataLoader[Batch]:
        """Whole images of the validation split, one a batch; each process its share, which may be of other length."""
        images = WholeImages(self.data, self.data.ids(self.data.val))
        own: dict[str, Any] = {} if distributed.world() == 1 else {"sampler": distributed.share(range(len(images)))}
        return DataLoader(images, batch_size=1, **own, **self._options())

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Labels as int64, which losses take. Lightning calls this with every batch that has reached the device."""
        return {**batch, "labels": batch["labels"].long()} if "labels" in batch else batch

    def _sampler(self) -> EpochSampler:
        count = len(self.data.ids(self.data.train))
        return EpochSampler(count, seed=self.seed, batch_size=self.batch_size, accumulate=self.accumulate)

    def _options(self) -> dict[str, Any]:
        return {
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
