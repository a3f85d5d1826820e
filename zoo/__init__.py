"""Pretrained networks as artifacts, and `index.toml`, which says how each came about: `edgeff zoo`."""
