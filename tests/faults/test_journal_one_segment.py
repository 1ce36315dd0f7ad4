"""A disk that is full before the journal's first segment is: what is released there has to make room again."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tollspan.processor.journal import Batch, Journal, JournalFull
from tollspan.processor.journal.batchlog import BatchLog
from tollspan.processor.journal.files import Cursor, Position, Range, load_cursor, replace_in_place, save_cursor
from tollspan.processor.journal.inspection import inspect
from tollspan.processor.journal.segment import Segment, segment_numbers

SIZE = 50_000


def mount(kind: list[str], at: Path) -> Iterator[Path]:
    made = subprocess.run(["mount", *kind, str(at)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.strip()}")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=False)


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of about 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if request.param == "tmpfs":
        yield from mount(["-t", "tmpfs", "-o", "size=1m", "tmpfs"], disk)
        return
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(2 << 20)
    try:
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-m", "0", str(image)], check=True)
    except FileNotFoundError:
        pytest.skip("no mke2fs here")
    yield from mount(["-o", "loop", str(image)], disk)


def payload(number: int) -> bytes:
    return b"%06d" % number + os.urandom(SIZE - 6)


def fill(journal: Journal) -> list[bytes]:
    """Append until there is no room; what was taken."""
    taken: list[bytes] = []
    while len(taken) < 1000:
        try:
            journal.append(payload(len(taken))).wait(10)
            taken.append(b"%06d" % len(taken))
        except JournalFull:
            return taken
    raise AssertionError("the disk does not fill up")


def take(journal: Journal, max_bytes: int = 1) -> list[Batch]:
    batches = []
    while (batch := journal.next_batch(max_bytes, timeout=0)) is not None:
        batches.append(batch)
    return batches


def names(batches: list[Batch]) -> list[bytes]:
    return [payload[:6] for batch in batches for payload in batch.payloads]


def ballast(disk: Path) -> None:
    """Take every byte that is left, as another program on the same disk would."""
    with (disk / "ballast").open("ab", 0) as file:
        for size in (4096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def test_a_full_disk_has_room_again_when_all_that_is_on_it_is_released(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal")
    tokens: set[str] = set()
    for _ in range(3):
        taken = fill(journal)
        assert len(taken) > 5
        ballast(small_disk)
        batches = take(journal)
        assert names(batches) == taken
        assert not tokens & {batch.token for batch in batches}
        tokens |= {batch.token for batch in batches}
        for batch in batches:
            journal.release(batch)
    journal.append(payload(1)).wait(10)
    assert len(segment_numbers(journal.directory)) == 1
    seen = inspect(journal.directory)
    assert (seen.waiting_records, seen.wrong, seen.segments[-1].state) == (1, [], "open")
    assert journal.stats()["disk_bytes"] < 2 * SIZE
    journal.close()


def test_a_disk_that_takes_only_less_than_what_was_refused_is_still_full(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal")
    fill(journal)
    for _ in range(3):
        journal.append(b"").wait(10)
        assert isinstance(journal.refusal(SIZE), JournalFull)
        assert isinstance(journal.refusal(1 << 30), JournalFull)
    assert journal.refusal(1) is None
    for batch in take(journal):
        journal.release(batch)
    assert journal.refusal(SIZE) is None, "the next one makes room"
    journal.append(payload(0)).wait(10)
    assert journal.refusal(SIZE) is None
    assert not list(journal.directory.glob("room*")), "looking for room leaves nothing behind"
    journal.close()


def test_what_waits_on_a_full_disk_stays_and_makes_room_when_it_goes(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal")
    taken = fill(journal)
    batches = take(journal)
    ballast(small_disk)
    for batch in batches[1:-2]:
        journal.release(batch)
    with pytest.raises(JournalFull):
        journal.append(payload(0)).wait(10)
    journal.release(batches[0])
    with pytest.raises(JournalFull):
        journal.append(payload(0)).wait(10)
    journal.close()

    # Opened on the full disk: the cursor was saved on it, and nothing that waits was given up for room.
    journal = Journal(small_disk / "journal")
    assert inspect(journal.directory).waiting_records == 2
    with pytest.raises(JournalFull):
        journal.append(payload(0)).wait(10)
    again = take(journal)
    assert [(batch.token, batch.payloads) for batch in again] == [(b.token, b.payloads) for b in batches[-2:]]
    for batch in again:
        journal.release(batch)
    assert len(fill(journal)) >= len(taken) // 2
    journal.close()


def test_the_cursor_is_saved_on_a_full_disk_again_and_again(small_disk: Path) -> None:
    save_cursor(small_disk, Cursor(b"j" * 16, Position(1, 48)))
    ballast(small_disk)
    for offset in range(49, 99):
        save_cursor(small_disk, Cursor(b"j" * 16, Position(1, offset)))
        ballast(small_disk)
        assert load_cursor(small_disk) == Cursor(b"j" * 16, Position(1, offset))


def test_the_batch_log_is_compacted_on_a_full_disk(small_disk: Path) -> None:
    log = BatchLog(small_disk, b"j" * 16)
    assert log.open() == []
    ballast(small_disk)
    for number in range(1, 4):
        log.rewrite([Range(number, 48, 99)])
        ballast(small_disk)
    log.close()
    assert log.open() == [Range(3, 48, 99)]
    log.close()


@pytest.mark.parametrize("names_there", [".old", ".tmp+.old", ".old=path", ".tmp=path", ".tmp=backup"])
def test_a_replacement_that_was_cut_short_is_no_harm_to_the_next(tmp_path: Path, names_there: str) -> None:
    path, spare, old = (tmp_path / f"file{ending}" for ending in ("", ".tmp", ".old"))
    path.write_bytes(b"first")
    if names_there in (".old", ".tmp+.old"):
        old.write_bytes(b"zeroth")
    if names_there == ".tmp+.old":
        spare.write_bytes(b"half")
    if names_there == ".old=path":
        os.link(path, old)
        spare.write_bytes(b"half")
    if names_there == ".tmp=path":
        os.link(path, spare)
    backup = tmp_path / "backup"
    if names_there == ".tmp=backup":
        backup.write_bytes(b"kept")
        os.link(backup, spare)
    reader = path.open("rb")
    replace_in_place(path, b"2nd")
    assert path.read_bytes() == b"2nd"
    assert reader.read() == b"first", "what was there is not written over before it is replaced"
    reader.close()
    replace_in_place(path, b"the third")
    assert path.read_bytes() == b"the third"
    assert path.stat().st_nlink == spare.stat().st_nlink == 1
    assert not old.exists()
    assert names_there != ".tmp=backup" or backup.read_bytes() == b"kept"


# -- without a mount: a limit on the size of files ------------------------------------------------------------------

LIMIT = 6 * SIZE


@pytest.fixture
def file_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("file_limit")
def test_a_limit_on_file_sizes_is_survived_segment_by_segment(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for number in (1, 2, 3):
        assert len(fill(journal)) == 5
        assert segment_numbers(journal.directory) == [number]
        for batch in take(journal):
            journal.release(batch)
    # What no file can hold is refused whenever it comes, and in the way of nothing.
    for _ in range(3):
        with pytest.raises(JournalFull):
            journal.append(bytes(LIMIT)).wait(10)
    assert len(fill(journal)) == 5
    journal.close()


@pytest.mark.usefixtures("file_limit")
@pytest.mark.parametrize("before", range(5))
def test_of_those_that_share_a_sync_what_fits_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    journal = Journal(tmp_path / "journal")
    begun, go_on, sync = threading.Event(), threading.Event(), Segment.sync

    def slow(segment: Segment) -> None:
        begun.set()
        assert go_on.wait(60)
        sync(segment)

    monkeypatch.setattr(Segment, "sync", slow)
    taken, refused = [payload(0)], []
    first = journal.append(taken[0])
    assert begun.wait(60)
    # Four more fit, and then what is smaller; what is as large or larger does not.
    sizes = [*[SIZE] * before, 2 * LIMIT, *[SIZE] * (6 - before), SIZE + 1, SIZE // 2, 2 * LIMIT, 1]
    contents = [bytes([number]) * size for number, size in enumerate(sizes)]
    tickets = [(content, journal.append(content)) for content in contents]
    go_on.set()
    first.wait(60)
    for content, ticket in tickets:
        try:
            ticket.wait(60)
            taken.append(content)
        except JournalFull:
            refused.append(len(content))
    assert [len(content) for content in taken] == [SIZE] * 5 + [SIZE // 2, 1]
    assert sorted(refused) == [SIZE, SIZE, SIZE + 1, 2 * LIMIT, 2 * LIMIT]
    assert (journal.stats()["refused"], journal.stats()["pending_bytes"]) == (5, 0)
    journal.close()
    again = Journal(tmp_path / "journal")
    assert [content for batch in take(again) for content in batch.payloads] == taken
    again.close()


@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_only_want_of_room_removes_what_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(b"before").wait(10)
    for batch in take(journal):
        journal.release(batch)
    original: Callable[..., int] = getattr(os, call)
    left = [1]

    def once(*args: int) -> int:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(error, os.strerror(error))
        return original(*args)

    monkeypatch.setattr(os, call, once)
    ticket = journal.append(b"after")
    if error == errno.EIO:
        with pytest.raises(Exception, match="Input/output"):
            ticket.wait(10)
    else:
        ticket.wait(10)
        assert segment_numbers(journal.directory) == [2]
        assert [batch.payloads for batch in take(journal)] == [[b"after"]]
    assert journal.stats()["failures"] == 1
    journal.close()


def test_no_segment_goes_while_the_cursor_cannot_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(b"before").wait(10)
    for batch in take(journal):
        journal.release(batch)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(JournalFull):
            journal.append(b"after").wait(10)
        assert segment_numbers(journal.directory) == [1]
    journal.append(b"after").wait(10)
    assert [batch.payloads for batch in take(journal)] == [[b"after"]]
    journal.close()


KILLED = """
import os, resource, signal, sys
from pathlib import Path
from tollspan.processor.journal import Journal, JournalFull
from tollspan.processor.journal import journal as module, recovery, segment

place, moment = Path(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
journal = Journal(place)

def fill():
    try:
        while True:
            journal.append(bytes(50_000)).wait(10)
    except JournalFull:
        pass

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

fill()
module.CURSOR_INTERVAL_S = 1000         # saved by nothing but the want of room
while journal.stats()["unread_bytes"]:
    batch = journal.next_batch(1, timeout=0)
    print(batch.token, flush=True)
    journal.release(batch)
if moment == "cursor":
    recovery.remove = die               # saved, and not removed
elif moment == "removed":
    segment.Segment.create = die        # removed, and nothing is there yet
elif moment == "link":
    os.rename = die                     # the cursor is written, and not in its place
elif moment == "rename":
    rename = os.rename
    os.rename = lambda old, new: die() if str(old).endswith(".old") else rename(old, new)
journal.append(bytes(50_000)).wait(10)
print("not killed")
"""


EXPECTED = {"link": ["waiting"], "rename": ["released"], "cursor": ["released"], "removed": []}
"""What a look finds after the first kill."""


@pytest.mark.parametrize("moment", EXPECTED)
def test_a_kill_between_cursor_and_removal_loses_nothing_and_names_nothing_twice(tmp_path: Path, moment: str) -> None:
    place = tmp_path / "journal"
    tokens: list[str] = []
    for round_ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(place), moment, str(LIMIT)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        tokens += done.stdout.split()
        seen = inspect(place)
        assert seen.wrong == []
        if round_ == 0:
            assert [each.state for each in seen.segments] == EXPECTED[moment]
        journal = Journal(place)
        replayed = take(journal)
        again = [batch.token for batch in replayed]
        # Before the cursor is in its place all of it comes again, under the names it had; afterwards nothing does.
        assert set(again) <= set(tokens)
        assert len(again) == len(set(again))
        if moment != "link":
            assert again == []
        journal.append(b"goes on").wait(10)
        (batch,) = take(journal)
        assert batch.payloads == [b"goes on"]
        assert batch.token not in tokens
        tokens.append(batch.token)
        for each in (*replayed, batch):
            journal.release(each)
        journal.close()
        assert not list(place.glob("*.old")), "the second name is gone with the next save"
    assert journal.stats()["lost_batches"] == journal.stats()["corrupt_records"] == 0
