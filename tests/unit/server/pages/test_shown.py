import math

import pytest

from raytrain.server.pages import shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, shown.NOTHING),
        (math.inf, shown.NOTHING),
        (0, "0"),
        (475.0, "475"),
        (82.584, "82.58"),
        (-138.82, "-138.8"),
        (3900.4, "3,900"),
        (0.0012345, "0.001234"),
        (1.234e-7, "1.23e-07"),
        (123456789, "1.23e+08"),
    ],
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert shown.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (390_512, "390.5 kB"), (2e6, "2.0 MB"), (5e15, "5000.0 TB")],
)
def test_sizes(value: float, text: str) -> None:
    assert shown.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0s"), (59, "59s"), (200, "3m 20s"), (18_720, "5h 12m"), (183_600, "2d 3h")],
)
def test_durations(value: float, text: str) -> None:
    assert shown.seconds(value) == text


def test_a_hundred_percent_is_the_end() -> None:
    assert (shown.percent(0.999), shown.percent(1.0)) == ("99%", "100%")


def test_a_sparkline_goes_from_edge_to_edge() -> None:
    assert shown.spark([0.0, 5.0, 10.0], 100, 24) == "M0.0 22.0L50.0 12.0L100.0 2.0"


@pytest.mark.parametrize("values", [[], [1.0], [None, 1.0], [math.nan, math.inf]])
def test_less_than_two_values_are_no_line(values: list[float | None]) -> None:
    assert shown.spark(values) == ""


def test_equal_values_are_a_level_line() -> None:
    assert shown.spark([3.0, 3.0], 10, 24) == "M0.0 22.0L10.0 22.0"
