import pytest

from builder.engines import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        pytest.param(ValueError("what\nwhere"), "what", id="several lines"),
        pytest.param(ValueError("\n  what"), "what", id="an empty line first"),
        pytest.param(AssertionError(), "AssertionError", id="no text"),
    ],
)
def test_an_error_has_a_first_line(error, line):
    assert first_line(error) == line
