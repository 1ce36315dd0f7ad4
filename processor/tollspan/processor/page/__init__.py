"""The page: what inference costs, who caused it and what happens now, in a browser.

`server` speaks HTTP and keeps strangers out, `api` knows the endpoints, `views` and `details` make data from the
ledger, `source` holds the handles and says who may ask when; ``static`` is what the browser gets.
"""

from __future__ import annotations

from tollspan.processor.page.api import Api, Live
from tollspan.processor.page.server import DEFAULT_ADDRESS, Page
from tollspan.processor.page.source import Source

__all__ = ["DEFAULT_ADDRESS", "Api", "Live", "Page", "Source"]
