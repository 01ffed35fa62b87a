"""Settings from texts: what is read, and what people are told when they err."""

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mechlab.errors import MechlabError, UnknownName
from mechlab.results import Study, parse_settings


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    n_prompts: int = Field(60, gt=0)
    strength: float = 1.0
    controls: bool = True
    layers: list[int] = [0]
    names: tuple[str, ...] = ()
    head: int | None = 3
    some: list[int] | None = None
    mode: Literal["mean", "zero"] = "mean"
    text: str = ""
    low: int = 0
    high: int = 9

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


def study_of(settings):
    return Study("ioi", "IOI", "a paper", "one line", settings, lambda *_: None)


STUDY = study_of(Settings)


def test_values_of_every_kind():
    settings = parse_settings(
        STUDY,
        [
            "n_prompts=12",
            "strength=-1e-3",
            "controls=false",
            "layers=0, 3,5",
            "names=a,b",
            " head = none ",
            "mode= zero",
            "text=a=b,c",
        ],
    )
    assert settings == Settings(
        n_prompts=12,
        strength=-1e-3,
        controls=False,
        layers=[0, 3, 5],
        names=("a", "b"),
        head=None,
        mode="zero",
        text="a=b,c",
    )
    assert parse_settings(STUDY, ["some=1,2", "layers="]) == Settings(some=[1, 2], layers=[])
    assert parse_settings(STUDY, []) == Settings()


@pytest.mark.parametrize(
    ("pairs", "error", "words"),
    [
        (["n_promts=3"], UnknownName, "did you mean n_prompts?"),
        (["zzz=3"], UnknownName, "settings of study 'ioi'"),
        (["n_prompts"], MechlabError, "write it as key=value"),
        (["=3"], MechlabError, "write it as key=value"),
        (["low=1", "low=2"], MechlabError, "given twice"),
        (["n_prompts=ten"], MechlabError, "n_prompts='ten' .* expected an integer"),
        (["n_prompts=2.5"], MechlabError, "expected an integer"),
        (["n_prompts=0"], MechlabError, "greater than 0"),
        (["strength="], MechlabError, "expected a number"),
        (["controls=perhaps"], MechlabError, "expected true or false"),
        (["layers=1,x"], MechlabError, "a list with commas, each an integer"),
        (["head=x"], MechlabError, "an integer or none"),
        (["mode=median"], MechlabError, "one of mean, zero"),
        (["low=10"], MechlabError, "do not fit together: low 10 is above high 9."),
    ],
)
def test_mistakes_are_told_in_one_sentence(pairs, error, words):
    with pytest.raises(error, match=words) as caught:
        parse_settings(STUDY, pairs)
    assert (
        "\n" not in str(caught.value) and "pydantic" not in str(caught.value) and str(caught.value).endswith((".", "?"))
    )


def test_a_setting_without_default_is_asked_for():
    class Needs(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid")
        concept: str

    with pytest.raises(MechlabError, match="needs the setting 'concept': add concept=VALUE"):
        parse_settings(study_of(Needs), [])


def test_a_study_without_settings_says_so():
    class Empty(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid")

    with pytest.raises(MechlabError, match="has no settings"):
        parse_settings(study_of(Empty), ["seed=1"])


def test_settings_must_be_frozen_and_closed():
    with pytest.raises(AssertionError, match="frozen"):
        study_of(type("Loose", (BaseModel,), {}))
