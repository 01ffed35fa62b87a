"""One feature of a dictionary as a direction: any dictionary (SAE, matching pursuit, SNMF, transcoder, PCA)."""

import torch
from pydantic import Field

from mechlab.dictionaries.dictionary import Dictionary, check_fits
from mechlab.errors import MechlabError
from mechlab.results.study import Progress
from steering.examples import Material, read
from steering.methods.method import Directions, Method, MethodSettings


class Settings(MethodSettings):
    """Settings of dictionary-feature."""

    feature: int | None = Field(
        default=None, ge=0, description="which feature; none: the one whose code the wanted class raises most"
    )


def run(material: Material, settings: Settings, progress: Progress) -> Directions:  # noqa: ARG001
    dictionary = material.dictionary
    if dictionary is None:
        raise MechlabError("Method 'dictionary-feature' needs a dictionary: give one to the Material (dictionary=...).")
    check_fits(dictionary, material.lens)
    if material.sites != (dictionary.target.whole,):
        raise MechlabError(
            f"This dictionary's features are directions at {dictionary.target.whole} and a vector was wanted at "
            f"{', '.join(map(str, material.sites))}: ask for the dictionary's own site alone."
        )
    feature = settings.feature if settings.feature is not None else strongest_feature(material, dictionary)
    if feature >= dictionary.n_features:
        raise MechlabError(
            f"Feature {feature} is not there: this dictionary has {dictionary.n_features}, counted from 0."
        )
    return {material.sites[0]: dictionary.directions[feature].detach().float().cpu()}


def strongest_feature(material: Material, dictionary: Dictionary) -> int:
    """The feature whose mean code is raised most by the wanted class, in units of the code's standard deviation."""
    at = dictionary.site.whole
    x = material.activations.get(at)
    if x is None:  # a transcoder reads elsewhere than it writes
        x = read(material.lens, material.examples.prompts, [at], material.position)[at]
    with torch.no_grad():
        codes = dictionary.encode(x).float().cpu()
    wanted = material.examples.is_wanted
    raised = codes[wanted].mean(0) - codes[~wanted].mean(0)
    return int((raised / codes.std(0).clamp_min(1e-6)).argmax())


METHOD = Method(
    name="dictionary-feature",
    title="Dictionary feature",
    paper="Templeton et al. 2024; O'Brien et al. 2024, arXiv 2411.11296",
    line="What one feature of a dictionary adds to the activation: the one named, or the one the wanted class raises most.",
    settings=Settings,
    run=run,
)
