"""Invalid files: ``tests/cases/config/<case>/config.toml`` gives the errors in ``error.txt`` beside it."""

import pytest

from stream_gru.config import parse_config
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import ConfigError
from tests.support.paths import CASES

CONFIG_STORIES = sorted(path.name for path in (CASES / "config").iterdir() if path.is_dir())


@pytest.mark.parametrize("story", CONFIG_STORIES)
def test_an_invalid_file_is_reported_with_file_line_key_expectation_and_value(story: str) -> None:
    """Every error of the file is reported, in the order of the lines, with the text of ``error.txt``."""
    text = (CASES / "config" / story / "config.toml").read_text(encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "config.toml", CATALOG)
    assert "\n".join(caught.value.problems) + "\n" == (CASES / "config" / story / "error.txt").read_text(
        encoding="utf-8"
    )


def test_the_stories_are_found() -> None:
    """A moved folder of cases fails the test."""
    assert len(CONFIG_STORIES) >= 50
