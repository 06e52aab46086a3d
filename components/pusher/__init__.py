"""Publishing of a blessed model: whole or not at all."""
