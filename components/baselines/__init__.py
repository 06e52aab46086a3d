"""Baselines that every two-tower model is reported beside: popularity, item-kNN and EASE."""
