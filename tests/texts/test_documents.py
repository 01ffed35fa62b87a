"""Each kind of source gives its documents; what is not there is told in one sentence."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest

from mechlab.errors import MechlabError
from mechlab.texts.documents import documents


def test_bundled_is_found_as_package_data_and_has_five_kinds_of_prose() -> None:
    texts = list(documents("bundled"))
    assert (files("mechlab.texts") / "bundled" / "SOURCES.md").is_file()
    assert len(texts) == 316
    assert sum(map(len, texts)) > 2_450_000
    joined = "\n".join(texts)
    for phrase in ("Sherlock Holmes", "The Time Traveller", "the Beagle", "candle", "Federal", "archipelago"):
        assert phrase in joined
    assert not re.search(r"Project Gutenberg|CHAPTER|\(Applause|<p>|_the_", joined)


def test_wheel_declares_the_bundled_text() -> None:
    import tomllib

    root = Path(__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["mechlab"]
    found = {path for pattern in data for path in (root / "mechlab").glob(pattern)}
    assert {path for path in (root / "mechlab/texts/bundled").iterdir() if path.is_file()} <= found


def test_lines_join_inside_a_paragraph_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One line\nand its  end.\n\n\n  Another\r\nparagraph.\n")
    assert list(documents(str(tmp_path / "a.txt"))) == ["One line and its end.\n\nAnother paragraph."]


def test_files_of_each_kind_and_a_folder_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from txt")
    (tmp_path / "b.jsonl").write_text('{"text": "first", "id": "x"}\n\n' + json.dumps({"text": "second"}) + "\n")
    (tmp_path / "inner").mkdir()
    pd.DataFrame({"n": [1, 2], "story": ["third", "fourth"]}).to_parquet(tmp_path / "inner" / "c.parquet")
    (tmp_path / "ignored.csv").write_text("no")
    assert list(documents(str(tmp_path / "b.jsonl"))) == ["first", "second"]
    assert list(documents(str(tmp_path))) == ["from txt", "first", "second", "third", "fourth"]


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "in.txt").write_text("inside")
    (tmp_path / "root" / "out.txt").symlink_to(tmp_path / "outside.txt")
    assert list(documents(str(tmp_path / "root"))) == ["inside"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("two.jsonl", '{"a": "x", "b": "y"}', "has no column of text 'text': it has a, b"),
        ("number.jsonl", '{"text": 3}', "has no column of text"),
        ("broken.jsonl", '{"text": "x"', "does not read as jsonl"),
        ("list.jsonl", "[1]", "line 1 is no object"),
        ("fake.parquet", "not parquet", "does not read as parquet"),
        ("wrong.csv", "a,b", "is unknown"),
    ],
)
def test_files_that_are_no_texts_are_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(MechlabError, match=words):
        list(documents(str(tmp_path / name)))


def test_unknown_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="'wikipedia' is unknown: use 'bundled'"):
        list(documents("wikipedia"))
    with pytest.raises(MechlabError, match="holds no"):
        list(documents(str(tmp_path)))


def test_a_dataset_is_read_by_name_split_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    pd.DataFrame({"story": ["one", "two"], "title": ["a", "b"]}).to_parquet(tmp_path / "data" / "test.parquet")
    monkeypatch.chdir(tmp_path)
    assert list(documents("hf:data:test:story")) == ["one", "two"]
    with pytest.raises(MechlabError, match="no column of text 'text': it has story, title"):
        list(documents("hf:data:test"))


def test_a_dataset_out_of_reach_is_told_in_one_sentence() -> None:
    with pytest.raises(MechlabError, match=r"'hf:no/such-set' could not be read \(.*use 'bundled' or a file") as error:
        list(documents("hf:no/such-set"))
    assert "\n" not in str(error.value)
