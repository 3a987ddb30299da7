"""The ids of runs."""

from __future__ import annotations

import hashlib

from raytrain.server.history.run_index import id_of, utc


def test_an_id_is_of_the_place_and_the_run() -> None:
    expected = hashlib.sha256(b"/results/a\0r1").hexdigest()[:16]
    assert id_of("/results/a", "r1") == expected
    others = [id_of("/results/b", "r1"), id_of("/results/a", "r2"), id_of("/results/a", "\ud800")]
    assert len({expected, *others}) == 4


def test_moments_are_in_utc_and_sort_as_texts() -> None:
    assert utc("2026-01-01T01:30:00.123456+02:00") == "2025-12-31T23:30:00+00:00"
