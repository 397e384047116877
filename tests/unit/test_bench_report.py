"""What a bench makes of its rounds."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from msgspec.structs import replace

from tweed.bench.crossings import Calls, Passage, reading
from tweed.bench.report import MEASURES, Result, as_json, bars, lines, ratio


def values(*numbers: float) -> dict[str, list[float]]:
    return {measure.id: list(numbers) for measure in MEASURES}


RESULT = Result(
    rounds=3,
    seconds=1,
    when="2026-01-01 00:00 UTC",
    kernel="6.18",
    cpus=2,
    load=(0.5, 1.5),
    others=0.25,
    limit="bare",
    baseline="vxlan",
    values={"bare": values(100.0, 10.0, 40.0), "vxlan": values(50.0, 10.0, 10.0)},
)
RATE, LATENCY = MEASURES[0], MEASURES[3]


def test_a_ratio_is_the_median_over_rounds_and_above_one_where_it_is_better():
    assert ratio(RESULT, "vxlan", "bare", RATE) == 0.5  # of 0.5, 1 and 0.25, not 10 / 40
    assert ratio(RESULT, "vxlan", "bare", LATENCY) == 2.0  # of 2, 1 and 4
    assert ratio(RESULT, "vxlan", None, RATE) is None and ratio(RESULT, "vxlan", "udp-naive", RATE) is None


def test_a_way_that_got_nothing_through_is_no_division_by_zero():
    nothing = replace(RESULT, values=RESULT.values | {"vxlan": values(0.0, 0.0, 0.0)})
    assert ratio(nothing, "vxlan", "bare", LATENCY) is None
    assert ratio(nothing, "vxlan", "bare", RATE) is None
    assert lines(nothing) and ElementTree.fromstring(bars(nothing)) is not None


def test_json_has_values_and_ratios():
    document = as_json(RESULT)
    assert document["ways"]["vxlan"][RATE.id] == {"values": [50.0, 10.0, 10.0], "median": 10.0, "to_limit": 0.5, "to_baseline": 1.0}
    assert list(document["load"]) == [0.5, 1.5] and "values" not in document


def test_bars_are_as_long_as_the_medians():
    drawn = ElementTree.fromstring(bars(RESULT))
    widths = [float(each.get("width")) for each in drawn.iter("{http://www.w3.org/2000/svg}rect")][1:3]
    assert widths[0] / widths[1] == 40 / 10


def test_somebody_elses_overlay_alone_has_no_ratios():
    text = "\n".join(lines(replace(RESULT, limit=None, baseline=None, values={"against": values(1.0, 2.0, 3.0)})))
    assert "of None" not in text and "times None" not in text and "against" in text


def test_the_reading_of_crossings_says_what_was_counted():
    still = Calls(0, 0)
    kernel = Passage("vxlan", "TCP stream", 4400, 1, 100, "flannel.1", 100, Calls(50, 0), Calls(1, 2), still, Calls(50, 0))
    forwarded = Passage("udp-naive", "64-byte datagrams", 1000, 1000, 1000, "flannel0", 1000, Calls(1000, 3), Calls(2000, 1000), still, still)
    said = "\n".join(reading([kernel, forwarded]))
    assert "flannel.1 sent 100 packets while all processes of its node made 3 system calls" in said
    assert "3.00 crossings that move data to send one packet, 1.00 by the application and 2.00 by the" in said
    assert "makes 1.00 more that move none; per skb of the underlay it is 2.00" in said
