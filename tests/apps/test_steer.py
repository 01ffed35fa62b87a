"""``mechlab steer``: a vector is written in the format of its ending, moves the text, and mistakes are told in a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechlab.models import load
from steering.files import load as load_vector

Cli = Callable[..., Any]


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    wanted, other = tmp_path / "wanted.txt", tmp_path / "other.txt"
    wanted.write_text("Mary gave a drink to John\nJohn went to Mary\n\n")
    other.write_text("the store\nthe drink to the store\n")
    return wanted, other


@pytest.mark.parametrize("ending", [".safetensors", ".gguf"])
def test_a_vector_is_made_and_applied(
    cli: Cli, tiny_folder: Path, texts: tuple[Path, Path], tmp_path: Path, ending: str
) -> None:
    path, options = tmp_path / f"v{ending}", ("--model", tiny_folder, "--json")
    made = cli("steer", "make", "--wanted", texts[0], "--other", texts[1], "--out", path, "--layers", "1,2", *options)
    assert made.code == 0, made.err
    assert list(made.document["sites"]) == ["L1.resid_post", "L2.resid_post"]
    assert made.document["origin"]["method"] == "mean-difference"
    if ending == ".safetensors":
        assert load_vector(path, load(str(tiny_folder))).origin.n_prompts == 4
    done = cli("steer", "apply", path, "Mary and John went to", "--strength", 5, "--max-new-tokens", 6, *options)
    assert done.code == 0, done.err
    assert done.document["kl"] > 0 and done.document["steered"] != done.document["unsteered"]
    still = cli("steer", "apply", path, "Mary and John went to", "--strength", 0, "--max-new-tokens", 6, *options)
    assert still.document["kl"] == 0 and still.document["steered"] == still.document["unsteered"]


def test_mistakes_are_told(cli: Cli, tiny_folder: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    wanted, other = texts
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    make = (
        "steer",
        "make",
        "--model",
        tiny_folder,
        "--other",
        other,
        "--wanted",
        wanted,
        "--out",
        tmp_path / "v.safetensors",
    )
    for argv, message in (
        ((*make[:-1], tmp_path / "v.pt"), "file ending"),
        ((*make, "--method", "mean-diference"), "mean-difference"),
        ((*make, "--layers", "one"), "do not parse"),
        ((*make, "--layers", "9"), "L9"),
        ((*make, "--wanted", empty), "holds no text"),
        ((*make, "--wanted", tmp_path / "absent"), "cannot be read"),
        (("steer", "apply", tmp_path / "absent.safetensors", "a", "--model", tiny_folder), "cannot be read"),
    ):
        done = cli(*argv)
        assert done.code == 2 and message in done.err, done.err
    assert not list(tmp_path.glob("v.*"))
    assert cli(*make).code == 0
    done = cli("steer", "apply", tmp_path / "v.safetensors", "the store", "--model", f"{tiny_folder}@random")
    assert done.code == 2 and "was made for" in done.err and "@random" in done.err
