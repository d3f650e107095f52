"""The caption side: a CLIP tokenizer over the words of the world, and a small CLIP text encoder."""

from __future__ import annotations

import json
import re

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from qvd_core.shapeworld.scene import ALL_SCENES

MAX_TOKENS = 20
WIDTH = 128


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer that knows every word of the world whole; other words fall to letters."""
    words = sorted({word for scene in ALL_SCENES for word in re.findall("[a-z]+", scene.caption)})
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    endings = [letter + "</w>" for letter in letters]
    # The trainer breaks ties by token number and numbers endings in the order of a hash table; announced as
    # special tokens they keep one order, so every process learns the same merges.
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        initial_alphabet=letters,
        special_tokens=endings,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    pairs.train_from_iterator(words, trainer)
    learnt = json.loads(pairs.to_str())["model"]
    vocabulary = [*letters, *endings, *sorted(learnt["vocab"], key=learnt["vocab"].get)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = CLIPTokenizer(vocab=ids, merges=merges, model_max_length=MAX_TOKENS)
    split = [word for word in words if len(tokenizer(word).input_ids) != 3]
    if split:
        raise RuntimeError(f"these words are not single tokens: {split}")
    return tokenizer


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 128 over at most 20 tokens (0.4 M parameters), trained jointly with the UNet."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
