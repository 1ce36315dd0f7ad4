"""Which names stand for credentials: what stands under them is neither hashed nor written down.

In: names of arguments and of fields inside them (an ``api_key``, the ``authorization`` of a remote tool, an
``X-Api-Key`` among headers). Out: whether the name is one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_CREDENTIAL: Final = re.compile(
    r"(?:.*_)?(?:(?:api|access|private|secret|signing|subscription)_?key(?:_id|_string)?|secret|password|authorization"
    r"|cookie|credentials?|(?:access|auth|bearer|session|identity|refresh)?_?token)"
)


@lru_cache(maxsize=4096)
def is_credential(name: str) -> bool:
    """Whether a name stands for a credential, in whatever spelling: ``api_key``, ``apiKey``, ``X-Api-Key``."""
    return _CREDENTIAL.fullmatch(name.lower().replace("-", "_")) is not None
