"""Quantised checkpoints: what their tensors stand for."""
