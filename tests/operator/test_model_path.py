from pathlib import Path

import pytest

from flexpert_proto import names


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("file:///models/tiny", "/models/tiny"),
        ("file:///models/with%20space", "/models/with space"),
        ("pvc://models/tiny-moe", "/volumes/models/tiny-moe"),
        ("pvc://models/a/b/", "/volumes/models/a/b"),
    ],
)
def test_a_source_names_a_folder(monkeypatch: pytest.MonkeyPatch, source: str, path: str) -> None:
    monkeypatch.delenv(names.ENV_VOLUMES_ROOT, raising=False)
    assert names.model_path(source) == Path(path)


def test_the_volumes_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.ENV_VOLUMES_ROOT, "/home/me/volumes")
    assert names.model_path("pvc://models/tiny") == Path("/home/me/volumes/models/tiny")


@pytest.mark.parametrize(
    "source",
    ["hf://org/model", "/models/tiny", "file://host/models", "pvc://claim", "pvc://claim/../x", "file:///a/../b", ""],
)
def test_anything_else_is_refused_with_what_to_write(source: str) -> None:
    with pytest.raises(names.ModelSourceError, match="write"):
        names.model_path(source)
