"""Evaluation of the served answers: TFMA retrieval metrics, slices, gate rules."""
