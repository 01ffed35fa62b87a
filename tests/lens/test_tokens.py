"""What the model sees: BOS never twice, nothing cut off, labels that point at tokens."""

import pytest
import torch

from mechlab.errors import PromptError
from mechlab.lens import tokenize
from mechlab.lens.lens import Lens
from mechlab.lens.tokens import chat, single_token
from mechlab.models import Model, tiny

TEXT = "Mary went to the store"


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny("llama")


@pytest.fixture
def with_bos(model) -> Model:
    """The same model with a tokenizer that puts the BOS token first by itself."""
    import copy

    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return Model(model.name, model.source, model.hf, tokenizer)


def ids(model, text, **kwargs) -> list[int]:
    return tokenize(model, text, **kwargs).ids[0].tolist()


def test_bos_is_never_doubled(model, with_bos):
    bare = ids(model, TEXT)
    assert len(bare) == 5 and 0 not in bare
    assert ids(model, TEXT, prepend_bos=True) == [0, *bare]
    assert ids(model, "<bos> " + TEXT, prepend_bos=True) == [0, *bare]
    assert ids(model, TEXT, prepend_bos=False) == bare
    assert ids(with_bos, TEXT) == [0, *bare]
    assert ids(with_bos, TEXT, prepend_bos=True) == [0, *bare]
    assert ids(with_bos, TEXT, prepend_bos=False) == bare


def test_a_model_without_bos_says_so():
    model = tiny("gpt2")
    model.tokenizer.bos_token = None
    with pytest.raises(PromptError, match="has no BOS token"):
        tokenize(model, TEXT, prepend_bos=True)


def test_padding_lengths_and_pieces(model):
    tokens = tokenize(model, [TEXT, "Tom", "the cat"])
    assert tokens.lengths == (5, 1, 2) and len(tokens) == 3 and tokens.width == 5
    assert tokens.mask.sum(1).tolist() == [5, 1, 2] and tokens.mask[1].tolist() == [True, False, False, False, False]
    assert tokens.pieces[0] == tuple(TEXT.split()) and not tokens.equal_lengths
    assert (
        tokens.labelled(IO=[0, 0, 1]).show() == "0:IO[Mary] 1[went] 2[to] 3[the] 4[store]\n0:IO[Tom]\n0[the] 1:IO[cat]"
    )


def test_tokens_and_ids_are_taken_as_they_are(model):
    tokens = tokenize(model, [TEXT])
    assert tokenize(model, tokens, prepend_bos=True) is tokens
    assert ids(model, [[7, 8, 9]], prepend_bos=True) == [7, 8, 9]
    assert ids(model, torch.tensor([[7, 8, 9]])) == [7, 8, 9]


def test_select_and_hash(model):
    tokens = tokenize(model, [TEXT, "Tom", "the cat"]).labelled(END=[4, 0, 1])
    part = tokens.select([2, 1])
    assert part.lengths == (2, 1) and part.width == 2 and part.labels == {"END": (1, 0)}
    assert part.pieces == (("the", "cat"), ("Tom",))
    assert tokens.sha256 == tokenize(model, [TEXT, "Tom", "the cat"]).sha256
    assert tokens.sha256 != tokens.select([1, 0, 2]).sha256
    assert tokens.select([1]).sha256 == tokenize(model, "Tom").sha256, "padding is no part of the prompts"


def test_positions(model):
    tokens = tokenize(model, [TEXT, "the cat"]).labelled(S=[3, 0])
    assert tokens.positions(-1) == (4, 1) and tokens.positions(1) == (1, 1) and tokens.positions("S") == (3, 0)
    with pytest.raises(PromptError, match="Position 2 is outside a prompt of 2 tokens: use -2 to 1"):
        tokens.positions(2)
    with pytest.raises(PromptError, match="label 'T' is unknown: these prompts have S"):
        tokens.positions("T")
    with pytest.raises(PromptError, match="has 1 positions for 2 prompts"):
        tokens.labelled(X=[1])
    for bad in (2, -1):
        with pytest.raises(PromptError, match=f"Label 'X' points at token {bad} of a prompt of 2 tokens"):
            tokens.labelled(X=[1, bad])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "No prompt was given"),
        ("", "The prompt is empty"),
        ([TEXT, ""], "The prompt is empty"),
        ([[]], "The prompt is empty"),
        ([[4, 227]], "Token id 227 is outside the vocabulary: use 0 to 226"),
        ([[-1]], "Token id -1 is outside"),
        ([[4] * 97], "has 97 tokens and tiny-llama reads at most 96"),
        ("Tom " * 97, "has 97 tokens and tiny-llama reads at most 96"),
    ],
)
def test_prompts_that_cannot_be_run(model, prompts, message):
    with pytest.raises(PromptError, match=message):
        tokenize(model, prompts)


def test_a_prompt_may_fill_the_context(lens_of):
    assert lens_of("gpt2").run([[4] * 96], logits="last").logits.shape[1] == 1


def test_answers_are_single_tokens(model):
    assert model.tokenizer.decode([single_token(model, " Mary")]) == "Mary"
    with pytest.raises(PromptError, match="Answer 'Mary Tom' is 2 tokens here"):
        single_token(model, "Mary Tom")


def test_chat_needs_a_template(model, with_bos):
    message = [{"role": "user", "content": "Tom"}]
    with pytest.raises(PromptError, match="has no chat template"):
        chat(model, message)
    with_bos.tokenizer.chat_template = "<bos>{% for m in messages %}{{ m['content'] }} {% endfor %}:"
    assert chat(with_bos, message).pieces == (("<bos>", "Tom", ":"),), "the template writes its own BOS"


def test_prompts_that_are_not_prompts():
    lens = Lens(tiny("llama"))
    with pytest.raises(PromptError, match=r"pass \[\[1, 2, 3\]\]"):
        lens.tokens([5, 6, 7])
    with pytest.raises(PromptError, match="batch_size 0"):
        lens.run([[5, 6, 7]], batch_size=0)
