"""A tokenizer made in code: one token for each word. For the tiny and planted models, which download nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<bos>", "<eos>", "<pad>", "<unk>")
"""Their ids are 0, 1, 2 and 3."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("""
    Mary John Tom Anna James Paul Lucy Mark Jane Peter Sarah David Emma Jack Kate Luke Alice Simon Rose Henry
    Laura Frank Julia George Clara Oscar
""")
PLACES = _words("""
    store park school house garden station library market kitchen office river hospital beach church city Paris
    Rome London Berlin Madrid France Italy England Germany Spain
""")
OBJECTS = _words("""
    drink book ring ball letter key apple cake hat pen cup flower coin map box bone basket computer necklace
    song car cat dog bird tree
""")
FUNCTION_WORDS = _words("""
    the a an The A An and or but not of to in at on from with for by he she it they we you I He She It They We
    You his her their my your who that this which when When then Then while While after After if If so was were
    is are be been had has have did do does will would can could went gave said told took saw got found made
    bought put goes gives says likes loves hates wants thinks knows lives capital year war lasted old new good
    bad happy sad big small red blue green black white true false yes no all every some one two first last very
    only also there here what where how why
""")
MARKS = _words("""
    . , ! ? : ; ' " - ( ) 0 1 2 3 4 5 6 7 8 9
""")

WORDS = NAMES + PLACES + OBJECTS + FUNCTION_WORDS + MARKS


def word_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A tokenizer that splits at white space, punctuation and single digits, and gives each word an id.

    The ids of `words` are 4, 5, ... ' Mary' and 'Mary' are the same token; other words become <unk>. It adds no <bos> of its own.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bos, eos, pad, unk = SPECIAL
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad, unk_token=unk, padding_side="right"
    )
    # TransformerLens reloads a tokenizer from disk unless these say that it need not; nothing is on disk here.
    # The second one has no effect on what the tokenizer does: that was settled when it was made.
    tokenizer.init_kwargs.update(name_or_path="mechlab-words", add_bos_token=True)
    return tokenizer
