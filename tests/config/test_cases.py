"""Stories of wrong files: ``tests/cases/config/<story>/config.toml`` is told as ``error.txt`` beside it."""

from pathlib import Path

import pytest

from stream_gru.config import parse_config
from stream_gru.core.errors import ConfigError

CASES = Path(__file__).parent.parent / "cases" / "config"
STORIES = sorted(path.name for path in CASES.iterdir() if path.is_dir())


@pytest.mark.parametrize("story", STORIES)
def test_a_wrong_file_is_told_with_file_line_key_expectation_and_value(story: str) -> None:
    """Every mistake of the file is told, in the order of the lines, in the words of ``error.txt``."""
    text = (CASES / story / "config.toml").read_text(encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "config.toml")
    assert "\n".join(caught.value.problems) + "\n" == (CASES / story / "error.txt").read_text(encoding="utf-8")


def test_the_stories_are_found() -> None:
    """A moved folder of cases would not pass unseen."""
    assert len(STORIES) >= 50
