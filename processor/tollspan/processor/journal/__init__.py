"""The journal: payloads are durable here before they are acknowledged, and stay until their rows are written.

In: whole OTLP requests as bytes, from many threads at once. Out: batches in the order of arrival, each with an identity
that stays the same across restarts. It stands between ``receive`` and ``decode``; it never looks inside a payload.

    journal = Journal(directory)
    journal.append(payload).wait()                  # returns once the payload is on disk
    batch = journal.next_batch(24 << 20, timeout=1.0, linger=0.25)
    journal.release(batch)                          # in any order, once nothing needs it any more

Files of a journal directory
----------------------------
All integers are little endian; every CRC is CRC-32 as in zlib.

``segment-NNNNNNNNNN.log``: append-only. Header of 48 bytes: magic ``TOLLSPAN``, format version u32, segment number
u64, journal id (16 bytes, drawn once per directory), marker (8 bytes, drawn once per segment), CRC u32 of the 44
bytes before. Then records: marker (8 bytes), time of receipt u64 (ns since the epoch), payload length u32, payload
CRC u32, CRC u32 of the 24 bytes before; then the payload. Behind the last record of each sync stands an end mark, a
record header of length 0xFFFFFFFF that the next record is written over: it tells a write that was cut short from a
last record that was damaged later. A segment that gets no more is cut off there. Whoever sends payloads does not know
the marker, so nothing inside a payload can be taken for a record when reading goes on behind damaged bytes.

``segment-NNNNNNNNNN.spare``: the file of a released segment, which a new one is written into: the directory is synced,
the file gets a size of whole pages, a new header (with a new marker) and an end mark, is synced, and is renamed. What
it held before still stands behind the end mark, has another marker, and is no record of the new segment. Up to 1 GiB
and a quarter of the cap; removed after a minute without use, when the disk has little room, and when the journal is
closed. Those of a process that was killed are taken over by the next. A file with a second hard link is never written
over.

``batches.log``: header of 32 bytes (magic ``TOLLBTCH``, version u32, journal id, CRC u32), then one entry of 28 bytes
for each frozen batch: segment u64, first byte u64, end u64, CRC u32. Rewritten without released batches now and then.

``cursor.json``: journal id and the place before which everything is released. Replaced by temporary file, fsync and
rename about once a second; an older cursor only means that more comes again.

``cursor.json.tmp``, ``batches.log.tmp``: the temporary files. They stay, so that there is room for them on a full disk:
the file that is replaced becomes the next temporary one (for an instant it is called ``.old``). No reader needs them.

``lock``: flock held by the owning process, whose pid it contains.

Formats
-------
All of this is format 1, which every file states: segments and ``batches.log`` in their headers, ``cursor.json`` as
``format``. Every later format keeps the magics, the version in bytes 8 to 11, the CRC as the last four of the first
48 (segment) or 32 (``batches.log``) bytes, and the names ``format`` and ``crc`` in ``cursor.json``, whose ``crc`` is
that of all other names as JSON with sorted keys. So every program can tell what is newer than itself from what is
damaged: it refuses a newer journal before it changes anything in it. Later versions replay older formats; a journal of
each, from its version's own hand, lies with the tests (``tests/processor/journals``).

Promises
--------
* A ticket completes after fdatasync of the segment, and a new segment's directory entry is synced before its first
  record is. Appenders that arrive while a sync runs share the next one, which waits up to 3 ms for those that the one
  before set free. An appender that is alone waits for no timer.
* A batch is a byte range of one segment. Its token, ``<journal id>-<segment>-<start>-<end>``, is on disk before the
  batch is handed out; after a crash the same range comes again with the same token and the same payloads, in order,
  and then what was not frozen yet. The newest segment file is removed only after a synced cursor that names it, so no
  range is ever named twice.
* After a failed write the segment is cut back to its last synced byte. After a failed fsync it is also given up: the
  kernel may have dropped the dirty pages, so the next append starts a new segment. Either way nothing is
  acknowledged, the ticket fails with `JournalError` (`JournalFull` for want of room), and the next append tries
  again.
* When an append finds no room (disk, quota, limit on file sizes), spare files are removed and it is tried again; where
  there are none and everything is released, all segments are, the one that is written to included. Where something
  waits, the append is refused, and room comes back when that is released.
* A file or directory that somebody removed or replaced takes nothing more: the append is refused, since what is
  written to a removed file is synced and lost. The process has to be started again.
* Where the newest segment has no end mark, the process died while it wrote: what stands behind the last good record
  is a torn tail, cut off on open and counted (``journal.torn_bytes``), but for what is not this segment's in a file
  that is used again, which its size of whole pages tells; nothing in it was acknowledged. A record whose CRC fails
  anywhere else is skipped, counted (``journal.corrupt_records``) and logged, and its segment is kept aside as
  ``*.damaged`` when it would be removed. So may be one that nobody was told of: of the last write to a file that is
  used again, a power cut can keep any pages. Nothing is ever reset silently.
"""

from tollspan.processor.errors import JournalError, JournalFull
from tollspan.processor.journal.files import Range
from tollspan.processor.journal.journal import Batch, Journal
from tollspan.processor.journal.ticket import Ticket

__all__ = ["Batch", "Journal", "JournalError", "JournalFull", "Range", "Ticket"]
