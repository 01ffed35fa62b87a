"""Settings of the massive-activations study."""

from pydantic import BaseModel, ConfigDict, Field

from mechlab.analyses.checkpoints_fit import MIN_POINTS
from mechlab.analyses.sinks_prompts import MIN_LENGTH


class Settings(BaseModel):
    """Settings of the massive-activations study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field("bundled", description="natural text: bundled, a path or hf:NAME")
    n_discovery: int = Field(24, ge=2, description="texts on which layer, dimensions and means are found")
    n_evaluation: int = Field(20, ge=2, description="held-out texts for interventions")
    length: int = Field(64, ge=MIN_LENGTH, description="tokens in a text")
    floor: float = Field(100.0, gt=0, description="size above which an entry can be massive")
    ratio: float = Field(1000.0, gt=1, description="times the median size that a massive entry has at least")
    draws: int = Field(10, ge=2, description="random draws per control")
    checkpoints: tuple[str, ...] = Field(
        (), description="revisions of the model or folders, such as step1000; none: small models trained here"
    )
    train_steps: int = Field(
        400, ge=20, description="optimizer steps of each small model; without effect where checkpoints are given"
    )
    n_checkpoints: int = Field(30, ge=MIN_POINTS, description="checkpoints of each small model")
    folder: str = Field("", description="where training is kept, so that it goes on; none: mechlab's cache")
    seed: int = Field(0, description="of texts, draws, training, intervals and the twin")
