"""Schemas built from the preset: `declared` (pure) and `component` (the TFX node)."""

from components.schema_gen.declared import declared_schema, schema_text

__all__ = ["declared_schema", "schema_text"]
