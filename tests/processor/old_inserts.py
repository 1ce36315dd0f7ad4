"""Inserts as versions wrote them before costs of charges were computed when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tollspan.processor.schema.tables import INSERTED_AS


@contextmanager
def as_then() -> Iterator[None]:
    """`Store.insert` names ``charges.cost`` itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(INSERTED_AS, "ledger")
        yield
