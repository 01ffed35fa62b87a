"""Settings of the emotion study."""

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Settings of the emotion study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_fit: int = Field(
        1, ge=1, le=6, description="fit scenarios of each of the 8 themes, in 3 valences and 6 emotions each"
    )
    n_held_out: int = Field(1, ge=1, le=4, description="held-out scenarios of each theme, in 3 valences each")
    kl: float = Field(0.1, gt=0, description="nats at which ways of steering are compared")
    alphas: tuple[float, ...] = Field((0.1, 0.7), min_length=1, description="pushes for the causal influence")
    n_push: int = Field(4, ge=1, description="neutral fit prompts that are pushed")
    k_neurons: int = Field(4, ge=1, description="neurons of each layer that are zeroed")
    k_heads: int = Field(2, ge=1, description="heads of each layer that are zeroed")
    n_texts: int = Field(6, ge=1, description="held-out prompts on which text is generated")
    n_tokens: int = Field(12, ge=2, description="tokens of that text")
    draws: int = Field(10, ge=2, description="random sets of units")
    few_draws: int = Field(2, ge=2, description="shuffled labels, and random directions, steered with")
    seed: int = Field(0, description="of draws, intervals and the twin")
