from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
from dagm_set import SIDE, labels, write_set
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from wsss.build import build
from wsss.data.dagm import DagmSet
from wsss.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_set(tmp_path / "dagm")


@cache
def composed() -> DictConfig:
    return tiny.composed("data=dagm2007")


@pytest.fixture
def read(root: Path) -> Callable[..., DagmSet]:
    """The three textures as the scripts read them, with further overrides."""

    def make(*overrides: str) -> DagmSet:
        config = composed().copy()
        config.merge_with_dotlist([f"data.root={root}", "data.textures=[1,3,10]", *overrides])
        return build(config, "data")

    return make


def test_ids_and_tags_of_one_class_on_all_textures(read: Callable[..., DagmSet]):
    data = read()
    assert data.classes == ("defect",)
    assert data.tags("Train") == {
        "Class1_Train_0576": (),
        "Class1_Train_0577": (1,),
        "Class1_Train_0578": (),
        "Class1_Train_0579": (1,),
        "Class3_Train_0576": (1,),
        "Class3_Train_0577": (),
        "Class3_Train_0578": (1,),
        "Class10_Train_0576": (),
    }
    assert data.ids("Test") == tuple(
        f"Class{name}" for name in ("1_Test_0001", "1_Test_0002", "3_Test_0001", "3_Test_0002", "10_Test_0001")
    )


def test_a_class_for_each_texture(read: Callable[..., DagmSet]):
    data = read("data.classes=texture")
    assert data.classes == ("defect_1", "defect_3", "defect_10")
    assert data.class_ids("Class1_Train_0577") == (1,)
    assert data.class_ids("Class3_Train_0576") == (2,)
    assert data.class_ids("Class10_Test_0001") == (3,)
    assert data.class_ids("Class10_Train_0576") == ()
    assert data.mask("Class10_Test_0001")[12, 12] == 3


def test_textures_are_chosen_and_their_order_does_not_matter(read: Callable[..., DagmSet]):
    data = read("data.textures=[3,1]", "data.classes=texture")
    assert data.classes == ("defect_1", "defect_3")
    assert {id.split("_")[0] for id in data.ids("Train")} == {"Class1", "Class3"}
    assert read("data.textures=[3]").classes == ("defect",)


def test_the_mask_is_the_ellipse(read: Callable[..., DagmSet]):
    sample = read().sample("Class1_Train_0577", with_mask=True)
    assert sample.image.shape == (SIDE, SIDE, 3)
    assert (sample.image[11, 12] == 230).all()
    assert sample.mask.dtype == np.uint8
    assert sample.mask[[11, 11, 11, 11], [3, 4, 20, 21]].tolist() == [0, 1, 1, 0]  # its widest row
    assert sample.mask[[5, 6, 16, 17], 12].tolist() == [0, 1, 1, 0]
    assert sample.mask[6, 4] == 0


def test_an_image_without_defect_has_a_mask_of_background(read: Callable[..., DagmSet]):
    data = read()
    assert data.has_masks("Train")
    assert data.has_masks("Test")
    np.testing.assert_array_equal(data.mask("Class1_Train_0576"), np.zeros((SIDE, SIDE)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_masks_of_whatever_mode(mode: str, root: Path, read: Callable[..., DagmSet]):
    expected = read().mask("Class1_Train_0577")
    path = root / "Class1/Train/Label/0577_label.PNG"
    with Image.open(path) as image:
        image.convert(mode).save(path, format="PNG")
    np.testing.assert_array_equal(read().mask("Class1_Train_0577"), expected)


def test_the_published_set_names_ten_textures(root: Path):
    config = composed().copy()
    config.merge_with_dotlist([f"data.root={root}"])
    with pytest.raises(DataError) as error:
        build(config, "data")
    assert str(root / "Class2" / "Train") in str(error.value)
    assert "(textures there: Class1, Class10, Class3). Unpack Class2.zip" in str(error.value)


def test_splits_of_other_names_are_named(root: Path, read: Callable[..., DagmSet]):
    for folder in root.glob("Class*/Train"):
        folder.rename(folder.with_name("training"))
    with pytest.raises(DataError) as error:
        read()
    assert f"no folder {root / 'Class1' / 'Train'} (splits there: Test, training). " in str(error.value)
    assert str(error.value).endswith("Choose it with data.train=training")


def test_white_is_an_option_of_it(read: Callable[..., DagmSet], root: Path):
    Image.fromarray(np.full((SIDE, SIDE), 1000, np.uint16)).save(root / "Class1/Train/0576.PNG")
    config = composed().copy()
    OmegaConf.update(config, "data.white", 1000, force_add=True)
    config.merge_with_dotlist([f"data.root={root}", "data.textures=[1,3,10]"])
    assert (read().image("Class1_Train_0576").max(), build(config, "data").image("Class1_Train_0576").max()) == (3, 255)


@pytest.mark.parametrize("textures", ["[]", "[0]", "[1,11]", "[3,3]"])
def test_textures_that_there_are_not(textures: str, read: Callable[..., DagmSet]):
    with pytest.raises(ConfigError, match=r"data\.textures=\[.*1\.\.10, each once"):
        read(f"data.textures={textures}")


def test_classes_that_there_are_not(read: Callable[..., DagmSet]):
    with pytest.raises(ConfigError, match=r"data\.classes='scratch' .* defect, texture"):
        read("data.classes=scratch")


@pytest.mark.parametrize("download", [False, True])
def test_a_missing_set_says_where_to_get_it(download: bool, tmp_path: Path):
    with pytest.raises(DataError) as error:
        DagmSet(tmp_path / "nowhere", download=download)
    assert str(tmp_path / "nowhere") in str(error.value)
    assert "https://hci.iwr.uni-heidelberg.de/content/" in str(error.value)


def test_a_set_that_is_there_needs_no_download(read: Callable[..., DagmSet]):
    assert read("data.download=true").ids("Train") == read().ids("Train")


FAULTS = {
    "two fields": ("577\t1\t0577.PNG\t0\t0577_label.PNG", "577\t1", "line 3 is '577\\t1'"),
    "a flag of 2": ("577\t1", "577\t2", "line 3 is '577\\t2"),
    "no such image": ("0578.PNG", "9578.PNG", "line 4 names the image 9578.PNG, which is not in"),
    "no such mask": ("0577_label.PNG", "9577_label.PNG", "line 3 names the mask 9577_label.PNG, which is not in"),
    "a defect without mask": ("0577_label.PNG", "0", "line 3 names the mask 0, which is not in"),
    "a mask without defect": ("577\t1", "577\t0", "line 3 names a mask for an image without defect"),
    "an image twice": ("0578.PNG", "0576.PNG", "line 4 names the image 0576.PNG again"),
    "an image left out": ("578\t0\t0578.PNG\t0\t0\r\n", "", "does not list 0578.PNG (1 images"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_list_that_cannot_be(fault: str, root: Path, read: Callable[..., DagmSet]):
    old, new, told = FAULTS[fault]
    path = labels(root / "Class1" / "Train")
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    with pytest.raises(DataError) as error:
        read()
    assert str(path) in str(error.value)
    assert told in str(error.value)


def test_a_missing_list(root: Path, read: Callable[..., DagmSet]):
    labels(root / "Class3" / "Test").unlink()
    with pytest.raises(DataError, match=r"Labels\.txt cannot be read"):
        read()


def test_a_mask_that_does_not_decode_or_is_empty(root: Path, read: Callable[..., DagmSet]):
    path = root / "Class1/Train/Label/0577_label.PNG"
    Image.new("L", (SIDE, SIDE)).save(path, format="PNG")
    with pytest.raises(DataError, match=r"0577_label\.PNG is empty, but"):
        read().mask("Class1_Train_0577")
    path.write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"0577_label\.PNG does not decode"):
        read().mask("Class1_Train_0577")


@pytest.mark.slow
@pytest.mark.parametrize("classes", ["defect", "texture"])
def test_the_pipeline_runs_on_it(classes: str, root: Path, tmp_path: Path):
    with tiny.contained():
        pipeline = tiny.pipeline(root, tmp_path, "data=dagm2007", "data.textures=[1,3]", f"data.classes={classes}")
        artifact = pipeline.make_all()
    names = {"defect"} if classes == "defect" else {"defect_1", "defect_3"}
    assert set(artifact.metrics["iou"]) == {"background", *names}
    assert artifact.metrics["images"] == 4
    assert pipeline.artifact("labels").metrics["images"] == 7
