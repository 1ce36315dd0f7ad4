"""Which names stand for credentials: what stands under them is neither hashed nor written down.

In: names of arguments and of fields inside them (an ``api_key``, the ``authorization`` of a remote tool, an
``X-Api-Key`` among headers). Out: whether the name is one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_CREDENTIAL: Final = re.compile(
    r"(?:.*_)?(?:(?:account|api|access|private|secret|signing|subscription)_?key(?:_id|_string)?|secret|password|passwd"
    r"|passphrase|authorization|cookie|credentials?|connection_string|jwt"
    r"|(?:access|api|auth|bearer|session|identity|refresh)?_?token)"
)
_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|-")
"""Where a word of a name begins, in whatever spelling."""


@lru_cache(maxsize=4096)
def is_credential(name: str) -> bool:
    """Whether a name stands for a credential, in whatever spelling: ``id_token``, ``idToken``, ``X-Id-Token``."""
    return _CREDENTIAL.fullmatch(_WORD.sub("_", name).lower()) is not None
