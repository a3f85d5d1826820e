"""What a study found: rows of one form, a picture of them, and a paragraph made from their numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeff.atomic import write_atomically
from edgeff.studies.picture import Panel, picture
from edgeff.table import table

Cell = str | int | float | None
Row = Mapping[str, Cell]


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        name: Of the study.
        title: One line for people.
        rows: All with the same keys, in the order of the table's columns.
        panels: Of the picture.
        paragraph: What the numbers say, made from them.
    """

    name: str
    title: str
    rows: Sequence[Row]
    panels: Sequence[Panel]
    paragraph: str

    def csv(self) -> str:
        """The rows with a line of column names."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def text(self) -> str:
        """Title, table and paragraph, for a terminal."""
        header = list(self.rows[0])
        lines = table(header, [[shown(row[key]) for key in header] for row in self.rows])
        return f"{self.title}\n\n{lines}\n\n{self.paragraph}"

    def json(self) -> str:
        """All but the picture."""
        found = {"study": self.name, "title": self.title, "rows": list(self.rows), "paragraph": self.paragraph}
        return json.dumps(found, indent=2)

    def write(self, folder: Path) -> None:
        """`<name>.csv`, `<name>.svg` and `<name>.md` in a folder.

        Raises:
            OSError: It cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        header = list(self.rows[0])
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(shown(row[key]) for key in header) + " |" for row in self.rows]
        head, image = f"# {self.title}", f"![{self.title}]({self.name}.svg)"
        markdown = "\n\n".join([head, "\n".join(lines), self.paragraph, image]) + "\n"
        write_atomically(folder / f"{self.name}.csv", self.csv().encode())
        write_atomically(folder / f"{self.name}.svg", picture(self.title, self.panels).encode())
        write_atomically(folder / f"{self.name}.md", markdown.encode())


def number(row: Row, key: str) -> float:
    """A cell as a number, 0 where it is empty.

    >>> number({"accuracy": 0.5, "spread": None}, "accuracy"), number({"spread": None}, "spread")
    (0.5, 0.0)
    """
    return float(row[key] or 0)


def points(difference: float) -> str:
    """A difference of two shares for people.

    >>> points(0.012), points(-0.0004)
    ('1.20 points ahead of', '0.04 points behind')
    """
    return f"{100 * abs(difference):.2f} points {'ahead of' if difference > 0 else 'behind'}"


def base_below(percentages: Iterable[float]) -> float:
    """A round number below all of them, so that bars differ visibly.

    >>> base_below([71.2, 93.0]), base_below([3.0])
    (65.0, 0.0)
    """
    return max(0.0, 5 * (min(percentages) // 5) - 5)


def shown(value: Cell) -> str:
    """A cell for people: three or four digits.

    >>> shown(0.91834), shown(1234567), shown(152.7), shown(None)
    ('0.9183', '1,234,567', '153', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
    return value
