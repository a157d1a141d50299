"""Stories of wrong files: ``tests/cases/config/<story>/config.toml`` is told as ``error.txt`` beside it."""

import pytest

from stream_gru.config import parse_config
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import ConfigError
from tests.support.paths import CASES

CONFIG_STORIES = sorted(path.name for path in (CASES / "config").iterdir() if path.is_dir())


@pytest.mark.parametrize("story", CONFIG_STORIES)
def test_a_wrong_file_is_told_with_file_line_key_expectation_and_value(story: str) -> None:
    """Every mistake of the file is told, in the order of the lines, in the words of ``error.txt``."""
    text = (CASES / "config" / story / "config.toml").read_text(encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "config.toml", CATALOG)
    assert "\n".join(caught.value.problems) + "\n" == (CASES / "config" / story / "error.txt").read_text(
        encoding="utf-8"
    )


def test_the_stories_are_found() -> None:
    """A moved folder of cases would not pass unseen."""
    assert len(CONFIG_STORIES) >= 50
