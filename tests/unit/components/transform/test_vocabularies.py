"""Rows of words over several runs, by hand."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from components.transform import append_new, count_values, read_lines, to_text


def words(text: str) -> Counter[bytes]:
    return Counter(word.encode() for word in text.split())


def test_three_runs_never_move_a_row() -> None:
    first = append_new((), words("b b b a a c"), size=10)
    assert first.words == (b"b", b"a", b"c")
    # c is now the most frequent, a is gone, d and e are new.
    second = append_new(first.words, words("c c c c b e d d"), size=10)
    assert second.words == (b"b", b"a", b"c", b"d", b"e")
    assert second.retired == (b"a",)
    assert (second.num_previous, second.to_record()["new"]) == (3, 2)
    # a comes back to its own row.
    third = append_new(second.words, words("a f"), size=10)
    assert third.words == (b"b", b"a", b"c", b"d", b"e", b"f")
    assert third.retired == (b"b", b"c", b"d", b"e")


def test_equal_counts_go_by_bytes_whatever_the_order_of_the_data() -> None:
    assert append_new((), words("z y x"), size=9).words == append_new((), words("x z y"), size=9).words
    assert append_new((), words("z y x"), size=9).words == (b"x", b"y", b"z")


def test_rare_words_and_those_beyond_the_size_get_no_row() -> None:
    counts = words("a a a a b b b c c d")
    assert append_new((b"old",), counts, size=9, min_count=2).words == (b"old", b"a", b"b", b"c")
    vocabulary = append_new((b"old",), counts, size=3, min_count=2)
    assert vocabulary.words == (b"old", b"a", b"b")
    assert (vocabulary.rare, vocabulary.out_of_vocabulary) == (2, 3)  # c twice, d once
    assert vocabulary.to_record()["out_of_vocabulary_share"] == 0.3
    # A word that has a row keeps it, however rare it is now and however small the vocabulary.
    later = append_new(vocabulary.words, words("a c c c"), size=1, min_count=2)
    assert later.words == vocabulary.words


def test_users_come_in_the_order_of_their_first_event() -> None:
    vocabulary = append_new((b"u9",), words("u1 u2 u9"), size=99, order=(b"u2", b"u9", b"u1"))
    assert vocabulary.words == (b"u9", b"u2", b"u1")


def test_what_the_graph_cannot_look_up_is_not_counted() -> None:
    column = pa.array([[b"a", b"", b"b"], [b"c", b"a\n"], None, []], pa.large_list(pa.large_binary()))
    assert count_values(column, 2) == {b"a": 1, b"c": 1}  # b is the third value of its record
    assert count_values(column, 3) == {b"a": 1, b"b": 1, b"c": 1}
    assert count_values(pa.nulls(2), 1) == {}
    assert count_values(pa.array([[7], [7]], pa.large_list(pa.int64())), 1) == {b"7": 2}


def test_the_file_round_trips_also_without_a_word() -> None:
    assert read_lines(to_text((b"a", "ü 1".encode()))) == (b"a", "ü 1".encode())
    # TensorFlow loads neither an empty file nor one with an empty line; what stands in for no word gives its row away.
    empty = to_text(())
    assert empty.count(b"\n") == 1 and empty.strip()
    assert to_text(append_new(read_lines(empty), words("a"), size=5).words) == b"a\n"
