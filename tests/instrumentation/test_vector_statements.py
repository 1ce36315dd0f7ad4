"""Statements of SQL: those that ask pgvector for neighbours are told from those that use its operators otherwise."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tollspan.instrumentation.vectors.statements import Nearest, nearest

VECTOR = "[1,0,0]"


@pytest.fixture(autouse=True)
def without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pgvector", raising=False)


@pytest.mark.parametrize(
    ("text", "parameters", "table", "top_k"),
    [
        ("SELECT id FROM items ORDER BY e <-> '[3,1,2]' LIMIT 5", None, "items", 5),
        ("SELECT id, e <=> %s AS far FROM items ORDER BY far LIMIT %s", (VECTOR, 7), "items", 7),
        ("SELECT id FROM items WHERE kind = %s ORDER BY e <#> %s LIMIT %s", ("a", VECTOR, 3), "items", 3),
        ("SELECT id FROM items ORDER BY e <+> %(v)s LIMIT %(k)s::INTEGER", {"v": VECTOR, "k": 4}, "items", 4),
        ("SELECT id FROM items ORDER BY e <-> $1 FETCH FIRST $2 ROWS ONLY", (VECTOR, 2), "items", 2),
        ("SELECT id FROM items ORDER BY e <~> $1 FETCH NEXT 9 ROWS ONLY", ("101",), "items", 9),
        ("SELECT id FROM items ORDER BY e <%%> %s LIMIT 1", ("101",), "items", 1),
        ('SELECT id FROM shop . "Items" ORDER BY e <-> $1::vector', ("x",), "shop.Items", None),
        ("SELECT id FROM items ORDER BY e <-> CAST(%s AS halfvec(3)) LIMIT ALL", ("x",), "items", None),
        ("SELECT id FROM items ORDER BY e <-> '{1:1,3:0.5}/5' LIMIT 2", None, "items", 2),
        ("/* route='/ask' */ -- FROM elsewhere\n select id from items order by e <=> $1 limit 2", [[0.5]], "items", 2),
        (
            "WITH near AS (SELECT id FROM items ORDER BY e <=> $1 LIMIT 20), text AS (SELECT id FROM words LIMIT 9) "
            "SELECT id FROM near JOIN text USING (id) LIMIT 5",
            (VECTOR,),
            "items",
            20,
        ),
        ("WITH q AS (SELECT v FROM asked LIMIT 1) SELECT i.e <=> '[1]' FROM items i, q LIMIT 6", None, "items", 6),
        ("SELECT * FROM (SELECT * FROM items WHERE kind = 1) AS some ORDER BY e <-> '[1,2]' LIMIT 8", None, "items", 8),
        ("SELECT (SELECT 1 - (e <=> '[1,2]')) FROM items LIMIT 8", None, "items", 8),
        ("INSERT INTO found SELECT id FROM items ORDER BY e <-> '[1,2]' LIMIT 4", None, "items", 4),
        ("SELECT 'it''s FROM x LIMIT 9', E'\\'FROM y' FROM items ORDER BY e <-> '[1]' LIMIT 3", None, "items", 3),
        ("SELECT $tag$ FROM x $tag$ FROM items ORDER BY e <-> '[1]' LIMIT 3", None, "items", 3),
        ("UPDATE items SET near = e <-> '[1,2]'", None, None, None),
    ],
)
def test_a_statement_that_asks_for_neighbours(text: str, parameters: Any, table: str | None, top_k: int | None) -> None:
    assert nearest(text, parameters) == Nearest(table, top_k)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "SELECT '<->'",
        "SELECT id FROM items -- <=>",
        "EXPLAIN SELECT id FROM items ORDER BY e <-> '[1]' LIMIT 5",
        "CREATE VIEW near AS SELECT id FROM items ORDER BY e <-> '[1]' LIMIT 5",
        "SELECT id FROM places ORDER BY at <-> ST_MakePoint(1, 2) LIMIT 5",
        "SELECT id FROM places ORDER BY at <-> 'SRID=4326;POINT(1 2)'::geometry LIMIT 5",
        "SELECT id FROM texts WHERE words @@ (to_tsquery('fat') <-> to_tsquery('rat'))",
        "SELECT id FROM texts ORDER BY title <-> 'word' LIMIT 5",
    ],
)
def test_a_statement_that_does_not(text: str) -> None:
    assert nearest(text, None) is None


def test_an_operand_that_tells_nothing_is_a_vector_where_the_program_uses_pgvector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "SELECT b.id FROM items a, items b WHERE a.id = %s ORDER BY a.e <-> b.e LIMIT 5"
    place = "SELECT id FROM places ORDER BY at <-> ST_MakePoint(1, 2) LIMIT 5"
    assert nearest(text, (1,)) is None
    monkeypatch.setitem(sys.modules, "pgvector", sys)
    assert nearest(text, (1,)) == Nearest("items", 5)
    assert nearest(place, None) is None


def test_a_limit_that_is_no_number_is_not_told() -> None:
    text = "SELECT id FROM items ORDER BY e <-> $1 LIMIT $2"
    for parameters in ((VECTOR,), (VECTOR, None), (VECTOR, True), (VECTOR, "5")):
        assert nearest(text, parameters) == Nearest("items", None)


def test_a_long_vector_that_is_written_out_is_read_and_not_kept() -> None:
    text = "SELECT id FROM items ORDER BY e <-> '[" + "0.125," * 2_000 + "1]' LIMIT 5"
    assert nearest(text, None) == Nearest("items", 5)
