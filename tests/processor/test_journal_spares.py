"""Segments that are written into the files of released ones: nothing of what those held ever comes out again."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.processor.journal import Batch, Journal, JournalFull
from tollspan.processor.journal import spares as module
from tollspan.processor.journal.inspection import inspect
from tollspan.processor.journal.segment import HEADER_BYTES, RECORD_BYTES, segment_numbers, segment_path

PAGE = 4096


@pytest.fixture(autouse=True)
def ample(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room, whatever the tests run on."""
    monkeypatch.setattr(module.Spares, "_scarce", lambda self: False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(place: Path) -> Iterator[Journal]:
    opened = Journal(place, segment_bytes=10_000)
    yield opened
    opened.close()


def keep(journal: Journal, *payloads: bytes) -> None:
    for payload in payloads:
        journal.append(payload).wait(10)


def drain(journal: Journal) -> list[Batch]:
    batches = []
    while (batch := journal.next_batch(1, timeout=0)) is not None:
        batches.append(batch)
    return batches


def release_all(journal: Journal) -> None:
    for batch in drain(journal):
        journal.release(batch)


def spares(place: Path) -> list[str]:
    return sorted(path.name for path in place.glob("*.spare"))


def cycled(journal: Journal) -> None:
    """Two segments filled and released: the first one's file is spare, and a short third segment is being written."""
    keep(journal, b"old 1 " * 2000, b"old 2 " * 2000)
    release_all(journal)
    assert spares(journal.directory) == ["segment-0000000001.spare"]


def used_again(journal: Journal) -> Path:
    """The file of a segment that is written into a spare file: ``segment-3``, with a small payload in it."""
    cycled(journal)
    keep(journal, b"in the third")
    path = segment_path(journal.directory, 3)
    assert spares(journal.directory) == ["segment-0000000002.spare"], "the file that came after it"
    assert path.stat().st_size > 10_000, "its file is longer than what is in it"
    return path


# -- use ---------------------------------------------------------------------------------------------------------------


def test_a_released_segment_s_file_becomes_the_next_one_s(journal: Journal) -> None:
    keep(journal, b"a" * 12_000)
    first = segment_path(journal.directory, 1).stat()
    keep(journal, b"b" * 12_000)
    release_all(journal)
    keep(journal, b"c")
    third = segment_path(journal.directory, 3).stat()
    assert (third.st_ino, third.st_mode & 0o777) == (first.st_ino, 0o600)
    assert [batch.payloads for batch in drain(journal)] == [[b"c"]]
    assert journal.stats()["disk_bytes"] < 13_000 + RECORD_BYTES + PAGE


def test_a_file_is_used_again_and_again_and_grows_where_it_has_to(journal: Journal) -> None:
    sent, got = [], []
    for number in range(60):
        sent.append(bytes([number]) * (3000 + 500 * (number % 23)))
        keep(journal, sent[-1])
        for batch in drain(journal):
            got += batch.payloads
            journal.release(batch)
    assert got == sent
    assert len(list(journal.directory.glob("segment-*"))) <= 4
    stats = journal.stats()
    assert stats["corrupt_records"] == stats["torn_bytes"] == 0


def test_spare_files_are_bounded_and_go_when_they_are_not_needed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(place, segment_bytes=10_000, spare_bytes=30_000)
    keep(journal, *[b"x" * 12_000] * 8)
    release_all(journal)
    assert len(spares(place)) == 2
    assert journal.state().spare_bytes == journal.stats()["spare_bytes"] == 2 * (12_000 + HEADER_BYTES + RECORD_BYTES)
    monkeypatch.setattr(module, "SPARE_S", 0.0)
    assert journal.next_batch(1, timeout=0) is None
    assert spares(place) == []
    assert journal.state().spare_bytes == 0
    journal.close()


def test_spare_files_are_within_the_journal_s_cap(place: Path) -> None:
    journal = Journal(place, segment_bytes=10_000, max_bytes=100_000)
    keep(journal, *[b"x" * 12_000] * 7)
    batches = drain(journal)
    for batch in batches[:3]:
        journal.release(batch)
    assert spares(place) == [], "more than half of the cap is in use"
    for batch in batches[3:]:
        journal.release(batch)
    assert len(spares(place)) == 2, "a quarter of the cap"
    journal.close()


def test_a_closed_journal_leaves_none_and_a_start_takes_over_what_a_kill_left(place: Path, tmp_path: Path) -> None:
    first = Journal(place, segment_bytes=10_000)
    keep(first, *[b"x" * 12_000] * 6)
    release_all(first)
    assert len(spares(place)) == 5
    first.save()
    killed = shutil.copytree(place, tmp_path / "killed")
    first.close()
    assert spares(place) == []

    (killed / "segment-0000000009.spare.txt").write_bytes(b"somebody's")
    shutil.copytree(killed, tmp_path / "other")
    second = Journal(killed, segment_bytes=10_000, spare_bytes=40_000)
    assert len(spares(killed)) == 3
    keep(second, b"again")
    assert len(spares(killed)) == 2 + 1, "one taken, and one more released"
    assert [batch.payloads for batch in drain(second)] == [[b"again"]]
    second.close()
    assert (killed / "segment-0000000009.spare.txt").exists()

    third = Journal(tmp_path / "other", spare_bytes=0)
    assert spares(tmp_path / "other") == []
    third.close()


def test_a_scarce_disk_gets_its_room_back(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    cycled(journal)
    monkeypatch.setattr(module.Spares, "_scarce", lambda self: True)
    assert journal.next_batch(1, timeout=0) is None
    assert spares(journal.directory) == []
    keep(journal, *[b"x" * 12_000] * 3)
    release_all(journal)
    assert spares(journal.directory) == []


def test_what_is_scarce_is_what_the_disk_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    place.mkdir()
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    assert module.Spares(place, free)._scarce()
    assert not module.Spares(place, free // 4)._scarce()


def test_a_full_disk_is_given_the_spare_files_and_the_append_is_taken(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycled(journal)
    original = os.pwritev
    monkeypatch.setattr(module.Spares, "take", lambda self: None)

    def full(fd: int, buffers: list[bytes], offset: int) -> int:
        if spares(journal.directory):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", full)
    keep(journal, b"has room")
    assert journal.stats()["refused"] == 0
    assert spares(journal.directory) == []


def test_readiness_counts_spare_files_as_room(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(journal, b"waits" * 3000, b"waits too" * 2000)
    journal.release(drain(journal)[0])

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert spares(journal.directory)
    assert journal.refusal(1000) is None
    journal._spares.clear()
    assert isinstance(journal.refusal(1000), JournalFull)


# -- what is not a file to write over ----------------------------------------------------------------------------------


def test_a_file_with_a_second_name_is_somebody_s_backup(journal: Journal, tmp_path: Path) -> None:
    cycled(journal)
    backup = tmp_path / "backup"
    os.link(journal.directory / "segment-0000000001.spare", backup)
    content = backup.read_bytes()
    keep(journal, b"elsewhere" * 1000)
    assert backup.read_bytes() == content
    assert segment_path(journal.directory, 3).stat().st_ino != backup.stat().st_ino
    assert backup.stat().st_nlink == 1


@pytest.mark.parametrize("how", ["gone", "link", "folder"])
def test_a_spare_that_is_no_file_any_more_is_passed_over(journal: Journal, tmp_path: Path, how: str) -> None:
    cycled(journal)
    spare = journal.directory / "segment-0000000001.spare"
    spare.unlink()
    other = tmp_path / "other"
    other.write_bytes(b"not to be written over")
    if how == "link":
        spare.symlink_to(other)
    elif how == "folder":
        spare.mkdir()
    keep(journal, b"goes on")
    assert [batch.payloads for batch in drain(journal)] == [[b"goes on"]]
    assert other.read_bytes() == b"not to be written over"


@pytest.mark.parametrize("call", ["ftruncate", "fsync", "rename"])
def test_a_spare_that_fails_is_dropped_and_the_next_append_makes_a_file(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    cycled(journal)
    left = [errno.EIO]
    original: Callable[..., object] = getattr(os, call)

    def failing(*args: object) -> object:
        target = os.readlink(f"/proc/self/fd/{args[0]}") if call != "rename" else str(args[0])
        if left and target.endswith(".spare"):
            raise OSError(left.pop(), "no")
        return original(*args)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(Exception, match="starting a segment"):
        keep(journal, b"refused")
    assert spares(journal.directory) == []
    keep(journal, b"taken")
    assert [batch.payloads for batch in drain(journal)] == [[b"taken"]]
    assert segment_numbers(journal.directory) == [4]


def test_a_segment_that_somebody_put_in_the_new_one_s_place_is_not_written_over(journal: Journal) -> None:
    cycled(journal)
    strange = segment_path(journal.directory, 3)
    strange.write_bytes(b"strange")
    with pytest.raises(Exception, match="File exists"):
        keep(journal, b"refused")
    assert strange.read_bytes() == b"strange"
    keep(journal, b"taken")
    assert segment_path(journal.directory, 4).exists()


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_law_a_write_into_a_used_file_that_stops_at_any_byte_leaves_whole_records_and_no_false_alarm(
    journal: Journal, tmp_path: Path
) -> None:
    path = used_again(journal)
    before, at = path.read_bytes(), inspect(journal.directory).segments[-1].payload_bytes
    begin = HEADER_BYTES + RECORD_BYTES + at
    keep(journal, b"d" * 60, b"e" * 60)
    after = path.read_bytes()
    assert len(before) == len(after)
    image = shutil.copytree(journal.directory, tmp_path / "crashed")
    record = RECORD_BYTES + 60
    for written in range(2 * record + RECORD_BYTES + 1):
        here = shutil.copytree(image, tmp_path / f"crashed{written}")
        segment_path(here, 3).write_bytes(after[: begin + written] + before[begin + written :])
        seen = inspect(here)
        again = Journal(here)
        whole = sum(written >= n * record for n in (1, 2))
        assert [b.payloads[0] for b in drain(again)] == [b"in the third", b"d" * 60, b"e" * 60][: 1 + whole], written
        stats = again.stats()
        again.close()
        assert stats["corrupt_records"] == 0
        # What the file held before is no torn write; a header that is not whole cannot be told from that.
        begun = written - whole * record
        torn = written < 2 * record and begun >= RECORD_BYTES
        assert stats["torn_bytes"] == (record if torn else 0), written
        assert [wrong.kind for wrong in seen.wrong] == ["torn"] * torn, written
        shutil.rmtree(here)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=4))
def test_law_a_power_cut_that_leaves_any_pages_of_a_write_gives_back_no_former_payload(
    seed: int, sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Spares, "_scarce", lambda self: False)
        journal = Journal(folder / "journal", segment_bytes=40_000)
        keep(journal, chance.randbytes(50_000), chance.randbytes(50_000))
        release_all(journal)
        keep(journal, b"acknowledged")
        path = segment_path(journal.directory, 3)
        before = path.read_bytes()
        sent = [chance.randbytes(size) for size in sizes]
        # One write: whoever waits for none of them has them in one group, or in a few.
        for ticket in [journal.append(payload) for payload in sent]:
            ticket.wait(10)
        after = path.read_bytes()
        image = shutil.copytree(journal.directory, folder / "image")
        journal.close()
        assert len(before) == len(after)
        pages = [chance.choice((before, after))[at : at + PAGE] for at in range(0, len(after), PAGE)]
        segment_path(image, 3).write_bytes(b"".join(pages))
        again = Journal(image)
        got = [payload for batch in drain(again) for payload in batch.payloads]
        keep(again, b"goes on")
        assert [batch.payloads for batch in drain(again)] == [[b"goes on"]]
        again.close()
    assert got[:1] == [b"acknowledged"]
    rest = iter(sent)
    assert all(payload in rest for payload in got[1:]), "some of what was sent, in order, and nothing else"


class Crashes:
    """Images of a journal's directory before each call that changes it on disk.

    Of each image there is one as a kill leaves it, and one as a power cut does: with the renames undone that no sync
    of the directory has made durable.
    """

    def __init__(self, directory: Path, to: Path, patch: pytest.MonkeyPatch) -> None:
        self._directory, self._to = directory, to
        self._renames: list[tuple[str, str]] = []
        self.images: list[tuple[Path, list[bytes], set[str]]] = []
        self.acknowledged: list[bytes] = []
        self.released: set[str] = set()
        for name in ("rename", "fsync", "pwritev", "ftruncate"):
            self._watch(patch, name, getattr(os, name))

    def _watch(self, patch: pytest.MonkeyPatch, name: str, original: Callable[..., object]) -> None:
        def watched(*args: object) -> object:
            self._take()
            result = original(*args)
            if name == "rename":
                self._renames.append((os.fspath(args[0]), os.fspath(args[1])))  # type: ignore[arg-type]
            elif name == "fsync" and os.path.isdir(f"/proc/self/fd/{args[0]}"):
                self._renames.clear()
            return result

        patch.setattr(os, name, watched)

    def _take(self) -> None:
        undoable = [names for names in self._renames if ".spare" in names[0] + names[1]]
        for undone in (False, True) if undoable else (False,):
            here = self._to / str(len(self.images))
            shutil.copytree(self._directory, here)
            if undone:
                for old, new in reversed(undoable):
                    if (here / Path(new).name).exists():
                        shutil.move(here / Path(new).name, here / Path(old).name)
            self.images.append((here, list(self.acknowledged), set(self.released)))


def test_law_a_kill_or_a_power_cut_between_any_two_steps_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "journal"
    journal = Journal(place, segment_bytes=2000)
    tokens: dict[str, list[bytes]] = {}
    with monkeypatch.context() as patch:
        crashes = Crashes(place, tmp_path / "images", patch)
        for number in range(12):
            payload = b"%03d" % number * 400
            keep(journal, payload)
            crashes.acknowledged.append(payload)
            if number % 3 == 2:
                for batch in drain(journal):
                    tokens[batch.token] = batch.payloads
                    crashes.released.add(batch.token)
                    journal.release(batch)
    journal.close()
    assert any(list(image.glob("*.spare")) for image, _, _ in crashes.images)
    for image, acknowledged, released in crashes.images:
        seen = inspect(image)
        assert [wrong.kind for wrong in seen.wrong if wrong.kind != "torn"] == [], image
        again = Journal(image, segment_bytes=2000)
        batches = drain(again)
        stats = again.stats()
        assert stats["corrupt_records"] == stats["damaged_files"] == stats["lost_batches"] == 0
        got = [payload for batch in batches for payload in batch.payloads]
        done = {payload for token in released for payload in tokens[token]}
        assert len(set(got)) == len(got)
        assert set(acknowledged) - done <= set(got)
        for batch in batches:
            assert tokens.get(batch.token, batch.payloads) == batch.payloads, "a token names the same for ever"
            again.release(batch)
        keep(again, b"goes on" * 400)
        assert [batch.payloads for batch in drain(again)] == [[b"goes on" * 400]]
        again.close()
        shutil.rmtree(image)
