"""Recipes of `edgeff pretrain --recipe NAME`: data, network, learning rule and training, one file each."""
