"""The table of words in CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path

TABLE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def retired_words() -> list[str]:
    """What stands in backticks in the column of retired words: `Port`, `verdict()`, `...Settings`."""
    _, _, table = TABLE.read_text(encoding="utf-8").partition("\n| word | means | retired |\n")
    columns = [row.split(" | ")[2] for row in table.partition("\n\n")[0].splitlines()]
    return sorted({word for column in columns for word in re.findall(r"`([^`]+)`", column)})
