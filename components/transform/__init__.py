"""Transform with rows that never change number: `vocabularies` is pure, `component` the TFX node."""

from components.transform.vocabularies import Vocabulary, append_new, count_values, read_lines, to_text

__all__ = ["Vocabulary", "append_new", "count_values", "read_lines", "to_text"]
