"""The four ways to count a model's parameters N, each of which is a column of the run table.

Figures and laws over the size of models depend on the choice. With more experts the total grows at equal compute, and
in small models the embeddings of patches, timesteps and captions are a large share that does not scale.
"""

from __future__ import annotations

from typing import NamedTuple

from experiments.errors import EcditError, did_you_mean
from experiments.records.record_types import RunRecord

EMBEDDINGS = frozenset({"embed", "time", "text"})
"""Parts of `params_by_part` that turn patches, timesteps and captions into vectors; all of them are activated."""


class Count(NamedTuple):
    """One way to count: its column of the run table and its label."""

    column: str
    label: str


ACTIVATED = Count("params_active", "Activated parameters")
COUNTS = {
    "activated": ACTIVATED,
    "total": Count("params_total", "Total parameters"),
    "activated-without-embeddings": Count("params_active_without_embeddings", "Activated without embeddings"),
    "total-without-embeddings": Count("params_without_embeddings", "Parameters without embeddings"),
}


def find_count(name: str) -> Count:
    """Returns the way to count called `name`. Raises `EcditError` with the closest name when there is none."""
    if name not in COUNTS:
        raise EcditError(f"--parameters {name!r} is no way to count parameters.", did_you_mean(name, COUNTS))
    return COUNTS[name]


def counts_without_embeddings(record: RunRecord) -> dict[str, int | None]:
    """Returns the columns of `COUNTS` that leave out embeddings; None where a record has no other parameters."""
    embeddings = sum(count for part, count in record.params_by_part.items() if part in EMBEDDINGS)
    counts = {
        "params_without_embeddings": sum(record.params_by_part.values()) - embeddings,
        "params_active_without_embeddings": record.params_active - embeddings,
    }
    return {name: count if count > 0 else None for name, count in counts.items()}
