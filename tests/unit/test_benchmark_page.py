from benchmarks.report import PAGE, page


def test_the_page_is_made_from_the_committed_rows() -> None:
    assert PAGE.read_text() == page(), "run `python -m benchmarks.report`"
