"""The documents that are made of the rows of quantities: the page's JSON, the tables of the docs."""

from __future__ import annotations

from introspection.catalogue import tables, with_tables, words
from introspection.quantities import GROUPS, MAPS, NUMBERS
from tests.support.live import ROOT


def test_the_tables_of_the_docs_are_those_of_the_rows() -> None:
    """Run `python -m introspection.catalogue docs/introspection.md` if they are not."""
    text = (ROOT / "docs" / "introspection.md").read_text(encoding="utf-8")
    assert all(f"<!-- table {name} -->\n" in text for name in tables())
    assert with_tables(text) == text


def test_the_page_has_words_for_every_quantity() -> None:
    found = words()
    assert found["maps"].keys() == MAPS.keys()
    assert found["numbers"].keys() == NUMBERS.keys()
    for each in (*found["maps"].values(), *found["numbers"].values()):
        assert each["title"]
        assert each["sentence"]
    assert sorted(name for _, names in found["sections"] for name in names) == sorted(NUMBERS)


def test_a_map_and_its_number_are_of_the_same_name_or_the_number_is_a_member() -> None:
    """Why a map is lacking follows from its number: where both have one name, the answer names one reason."""
    for name, row in MAPS.items():
        assert row.number in NUMBERS
        if name in GROUPS:
            assert row.number.partition(".")[0] == name
