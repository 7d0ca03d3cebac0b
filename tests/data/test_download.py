import hashlib
import io
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from wsss.data import download
from wsss.data.download import SOURCES, Archive, Source, advice, fetch
from wsss.errors import ConfigError, DataError

PAGE = "https://example.org/about"
FILES = {"top/data/images/a.jpg": b"a" * 3000, "top/data/images/b.jpg": b"b" * 4000, "top/data/list.txt": b"a\nb\n"}
HOLDS = {"images/*.jpg": 2, "list.txt": 1}


def packed(suffix: str, files: dict[str, bytes] = FILES) -> bytes:
    """An archive of ``files``, not compressed, or with gzip."""
    content = io.BytesIO()
    if suffix == "zip":
        with zipfile.ZipFile(content, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=content, mode="w:gz" if suffix == "tgz" else "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


class Server:
    """Serves ``content`` under any name, as ``url``.

    Attributes:
        breaks: how many bytes it sends before it hangs up, for each of the next requests.
        ranges: whether it can begin in the middle.
        asked: the range that each request asked for.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.breaks, self.ranges = content, [], True
        self.asked: list[str | None] = []
        self.delay = 0.0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                server.asked.append(asked)
                time.sleep(server.delay)
                begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
                if self.path.startswith("/missing"):
                    self.send_error(404)
                    return
                if asked and server.ranges and begin >= len(server.content):
                    self.send_error(416)
                    return
                rest = server.content[begin:]
                self.send_response(206 if asked and server.ranges else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest[: server.breaks.pop(0)] if server.breaks else rest)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Starts a server and makes its archive the source of the set ``toy``."""
    servers = []

    def start(content: bytes, filename: str = "toy.zip", **changes: object) -> Server:
        servers.append(Server(content))
        archive = Archive(
            url=f"{servers[-1].url}/{filename}",
            md5=hashlib.md5(content).hexdigest(),
            member="top/data",
            target="",
            holds=HOLDS,
        )
        toy(monkeypatch, replace(archive, **changes))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def toy(monkeypatch: pytest.MonkeyPatch, *archives: Archive) -> None:
    monkeypatch.setattr(download, "SOURCES", {"toy": Source(page=PAGE, archives=archives)})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WHOLE = {name.removeprefix("top/data/"): data for name, data in FILES.items()}


def work(root: Path) -> Path:
    """The folder where archives are fetched to."""
    return root.parent / f".{root.name}.download"


# --- what arrives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["zip", "tar", "tgz"])
def test_an_archive_becomes_the_set_and_nothing_else_is_left(suffix: str, serve: Callable[..., Server], tmp_path: Path):
    serve(packed(suffix), f"toy.{suffix}")
    fetch("toy", tmp_path / "deep" / "set")
    assert contents(tmp_path) == {f"deep/set/{name}": data for name, data in WHOLE.items()}


def test_a_finished_download_is_not_repeated(serve: Callable[..., Server], tmp_path: Path):
    server = serve(packed("zip"))
    fetch("toy", tmp_path / "set")
    fetch("toy", tmp_path / "set")
    assert len(server.asked) == 1


def test_files_of_ones_own_are_not_fetched_again(serve: Callable[..., Server], tmp_path: Path):
    server = serve(packed("zip"))
    for name in WHOLE:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"mine")
    fetch("toy", tmp_path / "set")
    assert not server.asked


def test_an_address_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "toy.zip").write_bytes(packed("zip"))
    toy(monkeypatch, Archive((tmp_path / "toy.zip").as_uri(), None, "top/data", "", HOLDS))
    fetch("toy", tmp_path / "set")
    assert contents(tmp_path / "set") == WHOLE
    assert (tmp_path / "toy.zip").is_file()


def test_several_archives_side_by_side(serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = serve(packed("zip")), serve(packed("tar"))
    archives = [
        Archive(f"{server.url}/{name}.{suffix}", None, "top/data", name, HOLDS)
        for server, name, suffix in ((first, "one", "zip"), (second, "two", "tar"))
    ]
    toy(monkeypatch, *archives)
    (tmp_path / "set" / "two").mkdir(parents=True)  # an empty folder is in nobody's way
    fetch("toy", tmp_path / "set")
    assert contents(tmp_path / "set") == {
        f"{part}/{name}": data for part in ("one", "two") for name, data in WHOLE.items()
    }
    (tmp_path / "set" / "two" / "list.txt").unlink()
    with pytest.raises(DataError, match=r"two is not complete \(0 of 1 list.txt\)"):
        fetch("toy", tmp_path / "set")
    assert (len(first.asked), len(second.asked)) == (1, 1)


def test_two_at_once_fetch_once(serve: Callable[..., Server], tmp_path: Path):
    server = serve(packed("zip"))
    server.delay = 0.2
    threads = [threading.Thread(target=fetch, args=("toy", tmp_path / "set")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert contents(tmp_path / "set") == WHOLE


# --- what breaks off ---------------------------------------------------------------------------------------------


def test_a_broken_connection_is_taken_up_where_it_ended(serve: Callable[..., Server], tmp_path: Path):
    server = serve(packed("zip"))
    server.breaks = [1000, 500]
    fetch("toy", tmp_path / "set")
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]
    assert contents(tmp_path / "set") == WHOLE


def test_a_partial_download_is_not_taken_for_finished_and_goes_on_in_the_next_run(
    serve: Callable[..., Server], tmp_path: Path
):
    server = serve(packed("zip"))
    server.breaks = [1000, 0]
    with pytest.raises(DataError, match="breaks off after 1000 bytes") as error:
        fetch("toy", tmp_path / "set")
    assert PAGE in str(error.value)
    assert not (tmp_path / "set").exists()
    assert (work(tmp_path / "set") / "toy.zip.part").stat().st_size == 1000
    fetch("toy", tmp_path / "set")
    assert server.asked[2:] == ["bytes=1000-"]
    assert contents(tmp_path / "set") == WHOLE


def test_a_server_that_begins_anew(serve: Callable[..., Server], tmp_path: Path):
    server = serve(packed("zip"))
    server.ranges, server.breaks = False, [1000]
    fetch("toy", tmp_path / "set")
    assert contents(tmp_path / "set") == WHOLE


@pytest.mark.parametrize("beyond", [b"", b"and more than that"])
def test_a_run_killed_after_the_last_byte(beyond: bytes, serve: Callable[..., Server], tmp_path: Path):
    server = serve(packed("zip"))
    work(tmp_path / "set").mkdir()
    (work(tmp_path / "set") / "toy.zip.part").write_bytes(server.content + beyond)
    if beyond:
        with pytest.raises(DataError, match="checksum"):
            fetch("toy", tmp_path / "set")
    fetch("toy", tmp_path / "set")
    assert contents(tmp_path / "set") == WHOLE


def test_a_run_killed_while_it_unpacked(serve: Callable[..., Server], tmp_path: Path):
    server = serve(packed("zip"))
    half = work(tmp_path / "set") / "unpacked" / "top" / "data" / "images"
    half.mkdir(parents=True)
    (half / "c.jpg").write_bytes(b"of another release")
    (work(tmp_path / "set") / "toy.zip").write_bytes(server.content)
    fetch("toy", tmp_path / "set")
    assert not server.asked
    assert contents(tmp_path / "set") == WHOLE


# --- what is refused ---------------------------------------------------------------------------------------------


def told(error: pytest.ExceptionInfo[DataError], root: Path) -> str:
    """The message, which says where to get the archive and where to put it; nothing is in place."""
    message = str(error.value)
    assert "toy.zip" in message
    assert PAGE in message
    assert str(work(root)) in message
    assert not root.exists()
    return message


def test_a_wrong_checksum(serve: Callable[..., Server], tmp_path: Path):
    server = serve(packed("zip"), md5="0" * 32)
    with pytest.raises(DataError) as error:
        fetch("toy", tmp_path / "set")
    message = told(error, tmp_path / "set")
    assert f"checksum {hashlib.md5(server.content).hexdigest()} instead of {'0' * 32}, so it was deleted" in message
    assert not list(work(tmp_path / "set").glob("toy*"))


def test_a_refused_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        toy(monkeypatch, Archive(f"http://127.0.0.1:{unused.getsockname()[1]}/toy.zip", None, "top/data", "", HOLDS))
        with pytest.raises(DataError) as error:
            fetch("toy", tmp_path / "set")
    assert "cannot fetch http://127.0.0.1" in told(error, tmp_path / "set")
    assert "refused" in str(error.value)


def test_an_address_that_is_gone(serve: Callable[..., Server], tmp_path: Path):
    serve(packed("zip"), "missing/toy.zip")
    with pytest.raises(DataError) as error:
        fetch("toy", tmp_path / "set")
    assert "404" in told(error, tmp_path / "set")


def test_an_archive_that_was_put_there_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = packed("zip")
    archive = Archive("http://nowhere.invalid/toy.zip", hashlib.md5(content).hexdigest(), "top/data", "", HOLDS)
    toy(monkeypatch, archive)
    work(tmp_path / "set").mkdir()
    (work(tmp_path / "set") / "toy.zip").write_bytes(content)
    fetch("toy", tmp_path / "set")
    assert contents(tmp_path / "set") == WHOLE


def test_an_archive_that_does_not_unpack(serve: Callable[..., Server], tmp_path: Path):
    serve(b"<html>This page has moved</html>")
    with pytest.raises(DataError) as error:
        fetch("toy", tmp_path / "set")
    assert "does not unpack" in told(error, tmp_path / "set")
    assert not list(work(tmp_path / "set").glob("toy*"))


@pytest.mark.parametrize("change", [{"holds": HOLDS | {"images/*.jpg": 3}}, {"member": "top/other"}])
def test_an_archive_that_holds_less_than_it_should(
    change: dict[str, object], serve: Callable[..., Server], tmp_path: Path
):
    serve(packed("zip"), **change)
    with pytest.raises(DataError) as error:
        fetch("toy", tmp_path / "set")
    assert "is not complete" in told(error, tmp_path / "set")
    assert "of 3 images/*.jpg" in str(error.value) or "0 of 2 images/*.jpg" in str(error.value)


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_an_archive_cannot_write_elsewhere(suffix: str, serve: Callable[..., Server], tmp_path: Path):
    serve(packed(suffix, {"../../../outside.txt": b"!", **FILES}), f"toy.{suffix}")
    if suffix == "tar":
        with pytest.raises(DataError, match="does not unpack"):
            fetch("toy", tmp_path / "a" / "b" / "set")
    else:
        fetch("toy", tmp_path / "a" / "b" / "set")
    assert not list(tmp_path.rglob("outside.txt"))


def test_what_is_there_is_not_touched(serve: Callable[..., Server], tmp_path: Path):
    server = serve(packed("zip"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "list.txt").write_text("mine")
    with pytest.raises(DataError) as error:
        fetch("toy", tmp_path / "set")
    assert f"{tmp_path / 'set'} is not complete (0 of 2 images/*.jpg)" in str(error.value)
    assert "move it away" in str(error.value)
    assert contents(tmp_path / "set") == {"list.txt": b"mine"}
    assert not server.asked


def test_a_place_that_cannot_be_written(serve: Callable[..., Server], tmp_path: Path):
    serve(packed("zip"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="toy cannot be fetched into"):
        fetch("toy", tmp_path / "file" / "set")


def test_a_set_that_nobody_knows(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"'imagenet'.*voc2012, sbd, coco2014, dagm2007"):
        fetch("imagenet", tmp_path)


# --- the table ---------------------------------------------------------------------------------------------------


def test_addresses_and_checksums_are_those_of_torchvision():
    (voc,), (sbd,) = SOURCES["voc2012"].archives, SOURCES["sbd"].archives
    known = DATASET_YEAR_DICT["2012"]
    assert (voc.url, voc.md5, voc.member, voc.filename) == tuple(
        known[key] for key in ("url", "md5", "base_dir", "filename")
    )
    assert (sbd.url, sbd.md5, sbd.filename) == (SBDataset.url, SBDataset.md5, SBDataset.filename)


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_says_what_it_brings(name: str):
    source = SOURCES[name]
    assert source.page.startswith("http")
    assert source.page in advice(name) or "data.download=true" in advice(name)
    assert bool(source.archives) != bool(source.by_hand)
    targets = [archive.target for archive in source.archives]
    assert len(set(targets)) == len(targets)
    assert all(archive.holds and len(archive.md5 or "") == 32 for archive in source.archives)


def test_dagm_has_to_be_got_by_a_person(tmp_path: Path):
    with pytest.raises(DataError) as error:
        fetch("dagm2007", tmp_path / "dagm")
    assert SOURCES["dagm2007"].page in str(error.value)
    assert "Class1/Train/Label/Labels.txt" in str(error.value)
    (tmp_path / "dagm/Class4/Train/Label").mkdir(parents=True)
    (tmp_path / "dagm/Class4/Train/Label/Labels.txt").write_text("1\n")
    fetch("dagm2007", tmp_path / "dagm")


def test_a_failed_download_ends_a_script_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/train2014.zip"
        archive = Archive(url, None, "train2014", "train2014", {"*.jpg": 1})
        monkeypatch.setattr(download, "SOURCES", {"coco2014": Source(page=PAGE, archives=(archive,))})
        root = tmp_path / "coco"
        overrides = (
            "data=coco2014",
            f"data.root={root}",
            "data.download=true",
            f"paths.artifacts={tmp_path}/artifacts",
        )
        code, output = tiny.call("train.py", *overrides, f"paths.logs={tmp_path}/logs")
    assert code == 2
    assert f"cannot fetch {url}" in output
    assert "Traceback" not in output
