"""Settings of the dictionaries study."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Settings of the dictionaries study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str | None = Field(
        None, description="where activations are decomposed; none: the stream after the middle layer"
    )
    n_features: int = Field(1024, ge=8, description="width of every dictionary")
    k: int = Field(32, ge=1, description="features a token may use")
    n_texts: int = Field(200, ge=10, description="passages that dictionaries are fitted on")
    n_held_out: int = Field(16, ge=4, description="passages of other documents that they are judged on")
    n_spliced: int = Field(
        10, ge=2, description="of these, passages that the model reads with each dictionary in place"
    )
    characters: int = Field(400, ge=40, description="most characters in a passage")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="in which activations are computed")
    training_tokens: int = Field(40_000, ge=100, description="activations seen in training")
    batch: int = Field(512, ge=2, description="activations in a step")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    sparsity: float = Field(1.0, ge=0, description="weight of the L1 penalty")
    snmf_sparsity: float = Field(0.05, gt=0, le=1, description="share of dimensions in a feature of SNMF")
    draws: int = Field(10, ge=2, description="random draws per claim")
    steered: int = Field(4, ge=2, description="concepts that the model is steered to")
    kl: float = Field(0.25, gt=0, description="nats that every steering direction may cost at the first new token")
    samples: int = Field(3, ge=1, description="texts written under a direction")
    new_tokens: int = Field(14, ge=2, description="tokens in each")
    labelled: int = Field(30, ge=3, description="features that are labelled")
    toy_steps: int = Field(1500, ge=200, description="training steps on the synthetic hierarchy")
    toy_seeds: int = Field(3, ge=1, description="seeds on the synthetic hierarchy; the median is shown")
    seed: int = Field(0, description="of texts, training, draws, intervals and the twin")
