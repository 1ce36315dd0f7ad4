"""FOCUS: the ledger as a FinOps Open Cost and Usage Specification dataset.

`columns` is the specification's list of columns as far as this dataset has them, `files` writes files of them, and
`metadata` says what the files are. What each column holds is in the view ``focus`` (migration 0013).
"""

from tollspan.processor.focus.columns import COLUMNS, VERSIONS, Column, columns_of
from tollspan.processor.focus.files import Exported, Selection, export
from tollspan.processor.focus.metadata import metadata

__all__ = ["COLUMNS", "VERSIONS", "Column", "Exported", "Selection", "columns_of", "export", "metadata"]
