"""Settings of the sinks study."""

from pydantic import BaseModel, ConfigDict, Field

from mechlab.analyses.sinks_levels import Thresholds
from mechlab.analyses.sinks_prompts import MIN_LENGTH


class Settings(BaseModel):
    """Settings of the sinks study. Shares are of the model's depth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field("bundled", description="natural text: bundled, a path or hf:NAME")
    n_discovery: int = Field(16, ge=2, description="texts on which the sink's direction, layers and neurons are found")
    n_evaluation: int = Field(20, ge=2, description="held-out texts, and prompts of each other kind")
    n_causal: int = Field(8, ge=2, description="held-out texts for interventions, at most n_evaluation")
    length: int = Field(64, ge=MIN_LENGTH, description="tokens in a prompt")
    epsilon: float = Field(0.3, gt=0, lt=1, description="mean attention from which a token is a sink of a head")
    candidates: int = Field(2, ge=1, description="first positions among which the primary sink is looked for")
    massive: float = Field(3.0, gt=1, description="norm over the others' median from which the primary is massive")
    cosine: float = Field(0.9, gt=0, lt=1, description="|cos| with the primary from which a token is a sink")
    noise_share: float = Field(0.1, ge=0, lt=1, description="lifetimes up to this share are noise")
    primary_share: float = Field(0.65, gt=0, le=1, description="lifetimes from this share on are like the primary's")
    write_share: float = Field(0.1, gt=0, lt=1, description="share of the peak that an MLP must write to count")
    components: int = Field(10, ge=2, description="principal components pushed through the MLP")
    mapped_cosine: float = Field(0.98, gt=0, lt=1, description="|cos| from which a component counts as mapped")
    draws: int = Field(10, ge=2, description="random draws per control")
    seed: int = Field(0, description="of texts, draws, intervals and the twin")

    @property
    def limits(self) -> Thresholds:
        """What counts as a sink."""
        return Thresholds(self.candidates, self.massive, self.cosine, self.noise_share, self.primary_share)
