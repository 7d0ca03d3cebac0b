import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from wsss import distributed
from wsss.data import Augment, DataModule, VocLayout, WholeImages, loading
from wsss.data.loading import EpochSampler, TrainingViews, cores, stable_seed, tag_vector

SEED = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> VocLayout:
    """Seven training images whose red value is their number, and two of validation."""
    root = tmp_path_factory.mktemp("set")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(9):
        Image.new("RGB", (24, 18), (number, 0, 0)).save(root / "JPEGImages" / f"{number}.png")
        mask = np.zeros((18, 24), np.uint8)
        mask[:, : 3 * (number % 3)] = number % 3
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{number}.png")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join("0123456"))
    (root / "ImageSets/Segmentation/val.txt").write_text("7\n8\n")
    return VocLayout(root)


def module(data: VocLayout, *, workers: int = 0, batch_size: int = 3, masks: bool = False) -> DataModule:
    augment = Augment(size=16, scale=(0.8, 1.5))
    return DataModule(
        data, augment=augment, batch_size=batch_size, workers=workers, seed=SEED, masks=data.mask if masks else None
    )


def passes(module: DataModule, epochs: int) -> list[list[dict[str, torch.Tensor]]]:
    loader = module.train_dataloader()
    batches = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)  # as Lightning does
        batches.append(list(loader))
    return batches


def numbers(batch: dict[str, torch.Tensor]) -> list[int]:
    """The numbers of the images of a batch, read from their pixels."""
    return batch["image"][:, 0, 8, 8].tolist()


def ranked(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int, count: int, batch_size: int) -> EpochSampler:
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world", lambda: ranks)
    return EpochSampler(count, seed=SEED, batch_size=batch_size)


# --- seeds and tags ----------------------------------------------------------------------------------------------


def test_stable_seed() -> None:
    """These numbers may never change, or the views of a resumed run differ from those it began with."""
    assert (stable_seed(0), stable_seed(1, 2)) == (7896617691693857887, 7764949442709860949)
    assert len({stable_seed(a, b) for a in range(4) for b in range(4)}) == 16
    assert 0 <= stable_seed(5) < 2**63


def test_tag_vector() -> None:
    assert tag_vector((), 2).tolist() == [0, 0]
    assert tag_vector((2,), 2).tolist() == [0, 1]
    assert tag_vector((1, 2), 2).dtype == torch.float32


# --- the sampler -------------------------------------------------------------------------------------------------


def test_an_epoch_visits_each_image_once() -> None:
    sampler = EpochSampler(6, seed=SEED, batch_size=3)
    assert sorted(sampler) == [(0, i) for i in range(6)]
    sampler.set_epoch(2)
    assert sorted(sampler) == [(2, i) for i in range(6)]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(30, seed=seed, batch_size=3)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    torch.manual_seed(1)
    first = order(0, 1)
    torch.manual_seed(2)
    assert order(0, 1) == first
    assert order(0, 0) != first != order(1, 1)
    assert first != sorted(first)


@pytest.mark.parametrize(
    ("count", "batch_size", "ranks", "length"),
    [
        (7, 3, 1, 6),  # a last batch of one image would break batch norm
        (6, 3, 1, 6),
        (8, 3, 1, 6),
        (2, 3, 1, 2),  # fewer images than a batch: one small batch, not none
        (1, 3, 1, 1),
        (20, 3, 2, 9),
        (7, 3, 2, 3),
        (7, 8, 3, 2),
    ],
)
def test_shares_are_disjoint_equal_and_of_full_batches(
    monkeypatch: pytest.MonkeyPatch, count: int, batch_size: int, ranks: int, length: int
) -> None:
    shares = []
    for rank in range(ranks):
        sampler = ranked(monkeypatch, rank, ranks, count, batch_size)
        share = [index for _, index in sampler]
        assert len(share) == len(sampler) == length
        shares.append(set(share))
    assert len(set.union(*shares)) == ranks * length


@pytest.mark.parametrize(
    ("count", "batch_size", "accumulate", "length"),
    [
        (8, 2, 2, 8),
        (7, 2, 2, 4),  # no step of fewer batches than the others
        (8, 1, 3, 6),
        (5, 2, 4, 4),  # fewer batches than a step wants: what there is
        (1, 2, 2, 1),
    ],
)
def test_an_epoch_holds_whole_steps(count: int, batch_size: int, accumulate: int, length: int) -> None:
    sampler = EpochSampler(count, seed=SEED, batch_size=batch_size, accumulate=accumulate)
    assert len(list(sampler)) == len(sampler) == length


def test_without_distribution_there_is_one_rank() -> None:
    sampler = EpochSampler(4, seed=0, batch_size=2)
    assert (sampler.rank, sampler.ranks) == (0, 1)


# --- views -------------------------------------------------------------------------------------------------------


def test_a_view_depends_on_seed_epoch_and_image(data: VocLayout) -> None:
    def padding(seed: int, epoch: int, index: int) -> bytes:
        """Where the view lies in its square: all that tells the views of even images apart."""
        views = TrainingViews(data, data.ids("train"), augment=Augment(size=16, scale=(0.3, 0.9)), seed=seed)
        return (views[epoch, index]["image"][0] == 127).numpy().tobytes()

    first = padding(0, 0, 0)
    assert padding(0, 0, 0) == first
    assert len({first, padding(1, 0, 0), padding(0, 1, 0), padding(0, 0, 1)}) == 4


def test_batches_of_a_classifier_and_of_a_segmenter(data: VocLayout) -> None:
    [[batch, _]] = passes(module(data), 1)
    assert set(batch) == {"image", "tags"}
    assert (batch["image"].shape, batch["image"].dtype) == ((3, 3, 16, 16), torch.uint8)
    assert (batch["tags"].shape, batch["tags"].dtype) == ((3, 2), torch.float32)
    expected = [tag_vector(data.class_ids(str(number)), 2).tolist() for number in numbers(batch)]
    assert batch["tags"].tolist() == expected

    [[batch, _]] = passes(module(data, masks=True), 1)
    assert set(batch) == {"image", "tags", "labels"}
    assert (batch["labels"].shape, batch["labels"].dtype) == ((3, 16, 16), torch.uint8)
    assert set(batch["labels"].unique().tolist()) <= {0, 1, 2, 255}


def test_labels_are_int64_where_the_loss_is_computed(data: VocLayout) -> None:
    source = module(data, masks=True)
    batch = next(iter(source.train_dataloader()))
    moved = source.on_after_batch_transfer(batch, 0)
    assert moved["labels"].dtype == torch.int64
    assert torch.equal(moved["labels"], batch["labels"].long())
    assert moved["image"] is batch["image"]
    assert moved["tags"] is batch["tags"]
    whole = next(iter(source.val_dataloader()))
    assert source.on_after_batch_transfer(whole, 0) is whole


def test_lightning_hands_int64_labels_to_the_training_step(data: VocLayout) -> None:
    seen = []

    class Network(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            seen.append({key: value.dtype for key, value in batch.items()})
            return self.weight

        def validation_step(self, batch: dict[str, torch.Tensor]) -> None: ...

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Network(), datamodule=module(data, masks=True))
    assert seen == [{"image": torch.uint8, "tags": torch.float32, "labels": torch.int64}] * 2


def test_masks_come_from_the_reader_that_is_given(data: VocLayout) -> None:
    reader = {id: np.full((18, 24), int(id), np.uint8) for id in data.ids("train")}
    source = DataModule(data, augment=Augment(size=16), batch_size=3, seed=SEED, workers=0, masks=reader.__getitem__)
    for batch in source.train_dataloader():
        for number, labels in zip(numbers(batch), batch["labels"], strict=True):
            assert set(labels.unique().tolist()) <= {number, 255}


def test_a_last_batch_of_one_image_is_dropped(data: VocLayout) -> None:
    [first, second] = passes(module(data), 2)
    assert [len(batch["tags"]) for batch in first] == [3, 3]
    seen = [number for batch in first for number in numbers(batch)]
    assert len(set(seen)) == 6
    assert seen != [number for batch in second for number in numbers(batch)]


def test_workers_change_nothing(data: VocLayout) -> None:
    alone = passes(module(data, masks=True), 2)
    shared = passes(module(data, masks=True, workers=2), 2)
    for batches, others in zip(alone, shared, strict=True):
        assert len(batches) == len(others) == 2
        for batch, other in zip(batches, others, strict=True):
            assert all(torch.equal(batch[key], other[key]) for key in ("image", "tags", "labels"))


def test_a_later_epoch_does_not_depend_on_the_earlier_ones(data: VocLayout) -> None:
    loader = module(data).train_dataloader()
    loader.sampler.set_epoch(1)
    for batch, other in zip(loader, passes(module(data), 2)[1], strict=True):
        assert torch.equal(batch["image"], other["image"])


def test_an_epoch_is_counted_in_batches(data: VocLayout) -> None:
    source = module(data)
    assert source.batches == len(source.train_dataloader()) == 2
    source.accumulate = 2
    assert source.batches == len(source.train_dataloader()) == 2
    source = module(data, batch_size=2)
    source.accumulate = 2
    assert source.batches == len(source.train_dataloader()) == 2
    assert module(data, batch_size=20).batches == 1


# --- in the middle of an epoch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 2])
def test_a_loader_goes_on_behind_the_batches_done(data: VocLayout, workers: int, done: int) -> None:
    """Those that loader processes have read ahead do not count; the pass after it is whole again."""
    first, second = passes(module(data, batch_size=2), 2)
    loader = module(data, batch_size=2, workers=workers).train_dataloader()
    batches = iter(loader)
    for _ in range(done):
        next(batches)
    state = loader.state_dict()
    assert state == {"batch": done}

    resumed = module(data, batch_size=2, workers=workers).train_dataloader()
    resumed.load_state_dict(state)
    assert len(resumed) == 3
    rest = list(resumed)
    assert resumed.state_dict() == {"batch": 0}
    resumed.sampler.set_epoch(1)
    for found, expected in ((rest, first[done:]), (list(resumed), second)):
        assert len(found) == len(expected)
        for batch, other in zip(found, expected, strict=True):
            assert torch.equal(batch["image"], other["image"])


def test_a_pass_that_goes_on_counts_from_where_it_began(data: VocLayout) -> None:
    loader = module(data, batch_size=2).train_dataloader()
    loader.load_state_dict({"batch": 1})
    batches = iter(loader)
    next(batches)
    assert loader.state_dict() == {"batch": 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_reads_the_epoch_that_is_set_before_its_first_batch(data: VocLayout, workers: int) -> None:
    """Lightning makes the iterator of a resumed run first, and tells the epoch later."""
    loader = module(data, workers=workers).train_dataloader()
    batches = iter(loader)
    loader.sampler.set_epoch(1)
    for batch, other in zip(batches, passes(module(data), 2)[1], strict=True):
        assert torch.equal(batch["image"], other["image"])


def test_validation_sees_whole_images_in_order(data: VocLayout) -> None:
    batches = list(module(data).val_dataloader())
    assert [batch["index"].tolist() for batch in batches] == [[0], [1]]
    assert [tuple(batch["image"].shape) for batch in batches] == [(1, 3, 18, 24)] * 2
    assert [batch["tags"].tolist() for batch in batches] == [[[1, 0]], [[0, 1]]]
    assert len(WholeImages(data, ["3"])) == 1
    assert WholeImages(data, ["3"])[0]["image"][0, 0, 0] == 3


def test_workers_follow_the_cores(data: VocLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores() >= 1
    for count, workers in ((1, 0), (2, 0), (4, 2), (64, 8)):
        monkeypatch.setattr(loading, "cores", lambda count=count: count)
        assert DataModule(data, augment=Augment(size=16), batch_size=2, seed=0).workers == workers
    assert module(data, workers=3).workers == 3
