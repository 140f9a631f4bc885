"""The sorted string table, written and read back, and damaged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from porter.errors import CheckpointError
from porter.sources.sstable import read_table
from porter.sources.sstable_writer import table_bytes

entries = st.dictionaries(st.binary(max_size=60), st.binary(max_size=400), max_size=80)


@given(entries, st.booleans())
def test_roundtrip(entries, snappy):
    table = table_bytes(sorted(entries.items()), snappy=snappy)
    assert dict(read_table(table, "t")) == entries


def test_long_keys_and_values():
    """Lengths that take several varint bytes, blocks larger than the block size."""
    entries = {b"a" * 300 + bytes([i]): bytes([i]) * 9000 for i in range(40)}
    assert dict(read_table(table_bytes(entries.items()), "t")) == entries


@given(entries, st.booleans(), st.data())
def test_damage_is_an_error_or_harmless(entries, snappy, data):
    """Any flipped byte gives CheckpointError or, in the padding of the footer, the same entries."""
    table = bytearray(table_bytes(sorted(entries.items()), snappy=snappy))
    position = data.draw(st.integers(0, len(table) - 1))
    table[position] ^= data.draw(st.integers(1, 255))
    try:
        found = dict(read_table(table, "t"))
    except CheckpointError as error:
        assert "t: " in str(error)
    else:
        assert found == entries


@given(entries, st.data())
def test_truncation_is_an_error(entries, data):
    table = table_bytes(sorted(entries.items()))
    with pytest.raises(CheckpointError, match="truncated|damaged|checksum"):
        list(read_table(table[: data.draw(st.integers(0, len(table) - 1))], "t"))
