"""What the pages say of stale figures is what they show: a line below a block."""

from research.readme.write import PAGES


def test_daggers_stand_in_lines_of_their_own_and_the_pages_say_so():
    lines = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines() if "†" in line]
    assert lines
    for line in lines:
        assert line.startswith("† Stale: `") or "line with †" in line, line
