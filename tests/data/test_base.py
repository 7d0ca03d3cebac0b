"""What all data sets share, on one that lies in memory; and image files of every kind."""

import io
import pickle
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data import ImageSet
from wsss.data.base import split_hint
from wsss.data.images import Depth, deep_range, image_size, read_image, read_mask, stored_size
from wsss.errors import ConfigError, DataError

WIDTH, HEIGHT = 3, 2


class Memory(ImageSet):
    """Images on disk, everything else in memory."""

    def __init__(
        self,
        root: Path,
        *,
        splits: Mapping[str, Sequence[str]],
        classes: Sequence[str] = ("cat", "dog"),
        tags: Mapping[str, tuple[int, ...]] | None = None,
        masks: Mapping[str, np.ndarray] | None = None,
        white: int | None = None,
    ) -> None:
        self.known = tags or {}
        self.asked: list[str] = []
        self.masks = masks or {}
        images = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.png")}
        super().__init__(
            root=root, name="memory", train="train", val="val", classes=classes, images=images, splits=splits,
            tag_source="memory", splits_from={"val": root / "val.txt"}, white=white,
        )  # fmt: skip

    def _read_tags(self, id: str) -> tuple[int, ...]:
        self.asked.append(id)
        return self.known[id]

    def _has_mask(self, id: str) -> bool:
        return id in self.masks

    def _read_mask(self, id: str) -> np.ndarray:
        return self.masks[id]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, id in enumerate(("a", "b", "c", "sub/a")):
        path = tmp_path / f"{id}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(path)
    return tmp_path


SPLITS = {"train": ("c", "a"), "val": ("sub/a",)}


# --- what a set offers -------------------------------------------------------------------------------------------


def test_all_that_a_set_offers(root: Path) -> None:
    mask = np.array([[0, 1, 255], [2, 0, 0]], np.uint8)
    data = Memory(root, splits=SPLITS, tags={"a": (1, 2), "c": (), "sub/a": (2,)}, masks={"sub/a": mask})
    assert (data.root, data.name, data.train, data.val) == (root, "memory", "train", "val")
    assert (data.classes, data.tag_source) == (("cat", "dog"), "memory")
    assert (data.ids("train"), data.ids("val")) == (("c", "a"), ("sub/a",))
    assert (data.has_masks("train"), data.has_masks("val")) == (False, True)
    assert data.tags("train") == {"c": (), "a": (1, 2)}
    assert data.image_path("sub/a") == root / "sub" / "a.png"
    assert data.image_size("a") == (WIDTH, HEIGHT)
    assert data.image("sub/a")[0, 0].tolist() == [3, 0, 0]
    assert data.mask("a") is None
    np.testing.assert_array_equal(data.truth("sub/a"), mask)
    sample = data.sample("sub/a", with_mask=True)
    assert (sample.id, sample.class_ids) == ("sub/a", (2,))
    np.testing.assert_array_equal(sample.mask, mask)
    assert data.sample("sub/a").mask is None


def test_tags_are_read_once(root: Path) -> None:
    data = Memory(root, splits=SPLITS, tags={"a": (1,), "c": ()})
    for _ in range(2):
        data.tags("train")
        data.class_ids("a")
    assert sorted(data.asked) == ["a", "c"]


def test_a_set_goes_to_another_process(root: Path) -> None:
    data = pickle.loads(pickle.dumps(Memory(root, splits=SPLITS, tags={"a": (1,)})))
    assert data.ids("train") == ("c", "a")
    assert data.class_ids("a") == (1,)


# --- what a set must hold to -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "fault"),
    [
        ((), "is empty"),
        (("cat", "dog", "cat"), "names cat twice"),
        (("cat", "Background"), "lists background as a class"),
        (tuple(f"class{number}" for number in range(255)), "has 255 classes; masks of 8 bits hold at most 254"),
    ],
)
def test_classes_that_cannot_be(root: Path, classes: tuple[str, ...], fault: str) -> None:
    with pytest.raises(DataError, match=f"the set memory {fault}"):
        Memory(root, splits=SPLITS, classes=classes)


@pytest.mark.parametrize(
    ("ids", "fault"),
    [
        ((), "names no image"),
        (("a", "b", "a"), "names a more than once"),
        (("a", "x", "y"), r"names 'x', but there is no image x \(2 of 3 ids have none\)"),
    ],
)
def test_splits_that_cannot_be(root: Path, ids: tuple[str, ...], fault: str) -> None:
    with pytest.raises(DataError, match=f"the split train of memory {fault}"):
        Memory(root, splits={"train": ids, "val": ("a",)})
    with pytest.raises(DataError, match=f"val.txt {fault}"):
        Memory(root, splits={"train": ("a",), "val": ids})


@pytest.mark.parametrize("id", ["../a", "sub/../a", "/a", "sub//a", "./a", "", "."])
def test_an_id_that_would_leave_its_folder(root: Path, id: str) -> None:
    """Even where the layout has such an image: seeds and masks are written under the id."""

    class Careless(Memory):
        def _check_split(self, ids: Sequence[str], origin: str) -> None:
            self._images |= {id: root / "a.png"}
            super()._check_split(ids, origin)

    with pytest.raises(DataError, match="an id is a name, or names joined by '/'"):
        Careless(root, splits={"train": (id,), "val": ("a",)})


def test_a_split_of_which_a_part_has_masks(root: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    with pytest.raises(DataError, match=r"no mask of c for image c of train \(1 of 2 have none\)"):
        Memory(root, splits=SPLITS, masks={"a": mask})


def test_masks_that_cannot_be(root: Path) -> None:
    splits = {"train": ("a",), "val": ("b",)}
    values = np.array([[0, 2, 3], [254, 255, 0]], np.uint8)
    data = Memory(root, splits=splits, masks={"a": values, "b": np.zeros((WIDTH, HEIGHT), np.uint8)})
    with pytest.raises(DataError, match=r"the mask of a has the value 3, but memory has 2 classes \(allowed: 0..2 and"):
        data.truth("a")
    with pytest.raises(DataError, match=r"the mask of b is 2x3 but its image .*b\.png is 3x2\. Export the mask"):
        data.mask("b")


# --- images as they come -----------------------------------------------------------------------------------------


def saved(path: Path, image: Image.Image, **options: object) -> np.ndarray:
    """What is read of an image after it was saved; its size must agree with that of the header."""
    image.save(path, **options)
    pixels = read_image(path)
    assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)
    assert image_size(path) == (pixels.shape[1], pixels.shape[0])
    return pixels


def write_png16(path: Path, values: np.ndarray) -> None:
    """A PNG of 16 bits a channel, ``(H, W, channels)``: Pillow writes grey ones alone."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 255), (0, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),  # nothing is seen but the page
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),  # a fifth red, four fifths white
    ],
)
def test_modes_of_png(mode: str, colour: object, seen: tuple[int, ...], tmp_path: Path) -> None:
    pixels = saved(tmp_path / "a.png", Image.new(mode, (WIDTH, HEIGHT), colour))
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.uint8(seen), (HEIGHT, WIDTH, 3)))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(suffix: str, tmp_path: Path) -> None:
    """Magenta and yellow ink make red; JPEG of this kind is stored inverted."""
    pixels = saved(tmp_path / f"a.{suffix}", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ([65535], (255, 255, 255)),
        ([32896], (128, 128, 128)),
        ([65535, 32896, 0], (255, 128, 0)),
        ([65535, 32896, 0, 65535], (255, 128, 0)),
        ([0, 0, 0, 0], (255, 255, 255)),
        ([0, 65535], (0, 0, 0)),
    ],
)
def test_sixteen_bits_a_channel(values: list[int], seen: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png16(path, np.broadcast_to(np.uint16(values), (HEIGHT, WIDTH, len(values))))
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(np.uint8(seen), (HEIGHT, WIDTH, 3)))
    assert image_size(path) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey_keep_their_scale_whatever_the_image(suffix: str, tmp_path: Path) -> None:
    values = np.array([[0, 257 * 3, 257 * 20]], np.uint16)  # a dark image is not stretched
    assert saved(tmp_path / f"a.{suffix}", Image.fromarray(values))[0, :, 0].tolist() == [0, 3, 20]


@pytest.mark.parametrize(
    ("white", "seen"), [(None, [0, 0, 15, 255]), (4095, [0, 15, 255, 255]), (255, [0, 255, 255, 255])]
)
def test_white_is_what_a_set_says_it_is(white: int | None, seen: list[int], root: Path) -> None:
    values = np.array([[0, 255, 4095, 65535]], np.uint16)
    Image.fromarray(values).save(root / "a.png")
    data = Memory(root, splits=SPLITS, white=white)
    assert data.image("a")[0, :, 0].tolist() == seen
    assert data.image("c")[0, 0].tolist() == [2, 0, 0]  # 8 bits stay as they are


def test_no_white_is_the_whole_range_bit_for_bit(tmp_path: Path) -> None:
    """Also in an image that is dark all over: of two images of one scene, the brighter comes out brighter."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(saved(tmp_path / "a.png", Image.fromarray(values))[..., 0], values // 257)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", white=65535), read_image(tmp_path / "a.png"))
    assert saved(tmp_path / "b.png", Image.fromarray(np.full((2, 2), 255, np.uint16))).max() == 0


@pytest.mark.parametrize("white", [0, -1, 65536])
def test_white_that_cannot_be(white: int, root: Path) -> None:
    with pytest.raises(ConfigError, match=f"data.white={white} must be .* from 1 to 65535"):
        Memory(root, splits=SPLITS, white=white)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_white_of_colours_is_refused_and_not_passed_over(channels: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png16(path, np.full((HEIGHT, WIDTH, channels), 4095, np.uint16))
    with pytest.raises(DataError, match=r"a\.png has colours of 16 bits, and data\.white=4095 is for grey images"):
        read_image(path, white=4095)


def test_what_is_used_of_a_range(tmp_path: Path) -> None:
    grey, colours, plain = (tmp_path / f"{name}.png" for name in ("grey", "colours", "plain"))
    write_png16(grey, np.array([[[7], [4001]]], np.uint16))
    write_png16(colours, np.array([[[0, 256 * 15 + 9, 0]]], np.uint16))
    Image.new("RGB", (2, 1), "white").save(plain)
    assert (deep_range(grey), deep_range(colours)) == (Depth(4001, grey=True), Depth(257 * 15, grey=False))
    assert deep_range(plain) is None
    plain.write_bytes(b"no image")
    with pytest.raises(DataError, match="does not decode"):
        deep_range(plain)


def test_sixteen_bits_a_pixel_are_not_a_channel(tmp_path: Path) -> None:
    """A BMP of 5 + 6 + 5 bits: one red pixel."""
    header = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0) + struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    path = tmp_path / "a.bmp"
    path.write_bytes(b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + header + struct.pack("<HH", 0xF800, 0))
    assert deep_range(path) is None
    assert read_image(path, white=4095)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (("Train", "Test"), "Choose them with data.train=Train data.val=Test"),
        (("training", "validation", "test"), "Choose them with data.train=training data.val=validation"),
        (("train", "Val"), "Choose it with data.val=Val"),
        (("train2017", "val2017"), "Choose them with data.train=train2017 data.val=val2017"),
        (("fold 1", "val"), "Choose of those there with data.train=..., or add the split 'train'"),
        ((), "Choose of those there with data.train=... data.val=..., or add the splits 'train' and 'val'"),
    ],
)
def test_splits_that_are_called_otherwise(there: Sequence[str], told: str) -> None:
    assert split_hint(there, train="train", val="val") == told


def test_a_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.putpixel((1, 0), 1)
    assert saved(tmp_path / "a.png", image)[0].tolist() == [[0, 0, 0], [9, 8, 7]]
    assert saved(tmp_path / "b.png", image, transparency=0)[0].tolist() == [[255, 255, 255], [9, 8, 7]]


def test_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (5, 5, 5))
    assert saved(tmp_path / "a.png", image, transparency=(1, 2, 3))[0].tolist() == [[255, 255, 255], [5, 5, 5]]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_in_every_format_that_has_one(suffix: str, orientation: int, tmp_path: Path) -> None:
    """Stored is what the camera saw; undoing EXIF's eight turns gives the upright picture, white at the top left."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    pixels = saved(path, Image.fromarray(np.ascontiguousarray(stored)), exif=exif, quality=95)
    assert np.abs(pixels.astype(int) - upright).mean() < 4
    assert stored_size(path) == (stored.shape[1], stored.shape[0])


def test_a_mask_drawn_on_an_image_lying_on_its_side_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "a.png", exif=exif)  # seen WIDTH x HEIGHT
    splits = {"train": ("a",), "val": ("a",)}
    seen, stored = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((WIDTH, HEIGHT), np.uint8)
    assert Memory(tmp_path, splits=splits, masks={"a": seen}).truth("a").shape == (HEIGHT, WIDTH)
    with pytest.raises(DataError, match=r"is 2x3 but its image .* is 3x2 as it is seen: its EXIF orientation"):
        Memory(tmp_path, splits=splits, masks={"a": stored}).truth("a")


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1)])
def test_one_pixel_wide(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = saved(tmp_path / "a.png", Image.new("RGB", size, (4, 5, 6)))
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.uint8((4, 5, 6)), (size[1], size[0], 3)))


def test_a_still_gif(tmp_path: Path) -> None:
    assert saved(tmp_path / "a.gif", Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_several_frames_or_pages_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    first, second = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
    first.save(path, save_all=True, append_images=[second])
    with pytest.raises(DataError, match=r"a\.\w+ has several frames or pages"):
        read_image(path)


def test_a_photograph_with_a_second_picture_inside(tmp_path: Path) -> None:
    """Phones and stereo cameras write these under the name .jpg."""
    path = tmp_path / "a.jpg"
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    first.save(path, format="MPO", save_all=True, append_images=[second])
    assert np.abs(read_image(path).astype(int) - (255, 0, 0)).max() <= 2


def test_floating_point_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.float32([[0.0, 1.5]])).save(path)
    with pytest.raises(DataError, match=r"a\.tif has floating-point values\. Save it with 8 or 16 bits"):
        read_image(path)


def test_floating_point_in_colour_is_refused(tmp_path: Path) -> None:
    from skimage import io as scientific

    path = tmp_path / "a.tif"
    scientific.imsave(path, np.full((8, 9, 3), 1.5, np.float32), check_contrast=False)
    with pytest.raises(DataError, match=r"a\.tif does not decode"):
        read_image(path)


def test_more_than_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.int32([[0, 70000]])).save(path)
    with pytest.raises(DataError, match=r"a\.tif has grey values from 0 to 70000"):
        read_image(path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("content", [b"", b"no image", "cut in its pixels", "cut in its header"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_files_that_do_not_decode(kind: str, content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, kind)
    whole = buffer.getvalue()
    kept = {"cut in its pixels": len(whole) * 2 // 3, "cut in its header": 15}
    path.write_bytes(content if isinstance(content, bytes) else whole[: kept[content]])
    with pytest.raises(DataError, match=r"the image .*a\.xyz does not decode \(.*take a out of the split"):
        read_image(path)
    with pytest.raises(DataError, match=r"the mask .*a\.xyz does not decode"):
        read_mask(path, id="a")


@pytest.mark.parametrize("read", [read_image, image_size, lambda path: read_mask(path, id="a")])
def test_a_file_that_is_gone(read: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png"):
        read(tmp_path / "nowhere.png")  # type: ignore[operator]
