from pathlib import Path

import pytest
from chart_release import CHART
from readme import DocumentationError, main, values_of, with_table


def test_the_readme_lists_the_values() -> None:
    assert main(["--check"]) == 0, "make generate"


def test_every_value_is_read() -> None:
    """A value that no template reads is a promise that is not kept; `kuberay.enabled` is the dependency's condition."""
    text = "".join(file.read_text() for file in (CHART / "templates").iterdir())
    for value in values_of((CHART / "values.yaml").read_text()):
        assert value.path == "kuberay.enabled" or f".{value.path.rsplit('.', 1)[-1]}" in text, value.path


def test_a_comment_may_take_several_lines() -> None:
    text = "a:\n  # -- First\n  # second.\n  b: 1\n# -- Whole.\nc: {d: 1}\n"
    found = {value.path: (value.default, value.description) for value in values_of(text)}
    assert found == {"a.b": (1, "First second."), "c": ({"d": 1}, "Whole.")}


@pytest.mark.parametrize("text", ["a: 1\n", "# words\na: 1\n", "# -- Said.\na: 1\nb: 2\n"])
def test_a_value_needs_words(text: str) -> None:
    with pytest.raises(DocumentationError, match=r"values\.yaml:\d+: \w has no comment"):
        list(values_of(text))


def test_pipes_do_not_break_the_table() -> None:
    readme = with_table("<!-- values: begin -->\nold\n<!-- values: end -->\n", values_of('# -- a|b\nc: "d|e"\n'))
    assert '| c | string | `"d\\|e"` | a\\|b |' in readme


def test_a_readme_without_marks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentationError, match="lacks the lines"):
        with_table("nothing", values_of("# -- Said.\na: 1\n"))
