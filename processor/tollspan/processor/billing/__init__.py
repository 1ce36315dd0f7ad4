"""Bills: what providers charged, beside what was metered.

`formats` says which columns a billing export has, `lines` reads files to lines of one shape, `imports` keeps them in
the store. What is made of them are the queries ``bills-reconcile`` and ``bills-attribution``.
"""

from tollspan.processor.billing.formats import FORMATS, BillFormat
from tollspan.processor.billing.imports import Imported, bills, import_bills, remove
from tollspan.processor.billing.lines import LINES, Names, read_lines, read_names

__all__ = [
    "FORMATS",
    "LINES",
    "BillFormat",
    "Imported",
    "Names",
    "bills",
    "import_bills",
    "read_lines",
    "read_names",
    "remove",
]
