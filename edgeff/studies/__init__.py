"""Experiments as commands: `edgeff study NAME` trains what it needs, and writes a table, a picture and what was found.

Needs PyTorch. `STUDIES` knows them by name; each is a function from `StudySettings` to `Findings`.
"""
