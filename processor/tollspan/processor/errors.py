"""Errors that a person reads: one sentence that says what is wrong and one that says what to do."""

from __future__ import annotations


class TollspanError(Exception):
    """Base of all errors that the command line prints as one line.

    Args:
        message: what is wrong, with the value that was wrong.
        hint: what the reader can do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class ConfigError(TollspanError):
    """A setting, URL, path or port that cannot be used as given."""


class JournalInUse(ConfigError):
    """A journal that another process owns; what is put into its inbox is taken up by that one."""


class StoreError(TollspanError):
    """The store cannot do what was asked and trying again will not help."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or is busy; the same call may succeed later."""


class StoreUnfit(StoreError):
    """The store takes no rows until its tables, rights or settings are mended; those that it refused are in order."""


class MalformedPayload(TollspanError):
    """Bytes that are not an OTLP ExportTraceServiceRequest."""


class JournalError(TollspanError):
    """The journal could not keep a payload; nothing of it was stored, and the same call may succeed later."""


class JournalFull(JournalError):
    """No room: the disk is full or the journal has reached its cap. Room returns when batches are released."""
