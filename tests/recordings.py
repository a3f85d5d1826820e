"""Data sets of overlapping windows, for tests of splits."""

import numpy as np
from hypothesis import strategies as st

from edgeff.dataset import Dataset


def dataset_of(y: np.ndarray, **columns: np.ndarray) -> Dataset:
    """Rows that tell their own number."""
    return Dataset("test", np.arange(len(y), dtype=np.int64)[:, None], y, **columns).check()


@st.composite
def recordings(draw: st.DrawFn) -> Dataset:
    """Windows of several recordings in shuffled order, of any overlap, with labels that may change at any window."""
    step = draw(st.integers(1, 4))
    y, sequence, span = [], [], []
    for recording in range(draw(st.integers(1, 3))):
        for place in range(draw(st.integers(1, 12))):
            if draw(st.integers(0, 5)):  # some windows are missing
                y.append(draw(st.integers(0, 2)))
                sequence.append(recording)
                span.append([place * step, place * step + draw(st.integers(1, 6))])
    order = draw(st.permutations(range(len(y)))) if y else []
    columns = {"sequence": np.array(sequence, np.int64)[order], "span": np.array(span, np.int64).reshape(-1, 2)[order]}
    y = [*y, 0, 0, 0]  # one recording that can always be halved
    more = {"sequence": np.full(3, 99), "span": np.array([[0, 2], [2, 4], [4, 6]])}
    return dataset_of(
        np.array(y, np.int64)[[*order, *range(len(y) - 3, len(y))]],
        **{key: np.concatenate([value, more[key]]) for key, value in columns.items()},
    )


def samples(dataset: Dataset) -> set[tuple[int, int]]:
    """Every sample of every recording that a row covers."""
    assert dataset.sequence is not None
    assert dataset.span is not None
    return {
        (recording, sample)
        for recording, (first, past) in zip(dataset.sequence.tolist(), dataset.span.tolist(), strict=True)
        for sample in range(first, past)
    }
