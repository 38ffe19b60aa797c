"""Tiny checkpoints with random weights, one of each family, in the files that the hub would hold."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

CONTEXT = 16
SIDE = 32
DIMENSION = 24
LOG_SCALE = 2.5
SMALL: dict[str, Any] = {'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 2}
VISION = SMALL | {'image_size': SIDE, 'patch_size': 8}
CROP = {'size': {'shortest_edge': SIDE}, 'crop_size': {'height': SIDE, 'width': SIDE}}

Parts = tuple[Any, Any, Any]
"""Model, tokenizer, image processor."""


def _clip_tokenizer() -> Any:
    """Byte-level, as CLIP's own: every text has ids."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = [('c', 'a'), ('ca', 't</w>'), ('d', 'o'), ('do', 'g</w>')]
    pieces = [*letters, *(letter + '</w>' for letter in letters), *(''.join(pair) for pair in merges)]
    vocabulary = {piece: n for n, piece in enumerate([*pieces, '<|startoftext|>', '<|endoftext|>'])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def _clip(legacy: bool = False) -> Parts:
    tokenizer = _clip_tokenizer()
    end = len(tokenizer) - 1
    # Old checkpoints say 2 where the end token is meant: the model then pools at the largest id.
    text = SMALL | {
        'vocab_size': len(tokenizer),
        'max_position_embeddings': CONTEXT,
        'bos_token_id': end - 1,
        'eos_token_id': 2 if legacy else end,
        'pad_token_id': end,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=DIMENSION)
    return transformers.CLIPModel(config), tokenizer, transformers.CLIPImageProcessorPil(**CROP)


def _gemma_tokenizer() -> Any:
    """SigLIP's own tokenizer needs sentencepiece; that of SigLIP 2 does not, and ends every text with <eos>."""
    from tokenizers.processors import TemplateProcessing

    pieces = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>', *(f'<0x{byte:02X}>' for byte in range(256))]
    pieces += [*string.ascii_lowercase, '▁', '.', ',', '的', 'ca', 'cat']
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={piece: n for n, piece in enumerate(pieces)},
        merges=[('c', 'a'), ('ca', 't')],
        model_max_length=CONTEXT,
        padding_side='right',
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single='$A <eos>', special_tokens=[('<eos>', 1)])
    return tokenizer


def _siglip() -> Parts:
    tokenizer = _gemma_tokenizer()
    text = SMALL | {'vocab_size': len(tokenizer), 'max_position_embeddings': CONTEXT, 'projection_size': 32}
    config = transformers.SiglipConfig(text_config=text | _IDS, vision_config=VISION)
    processor = transformers.SiglipImageProcessorPil(size={'height': SIDE, 'width': SIDE})
    return transformers.SiglipModel(config), tokenizer, processor


_IDS = {'pad_token_id': 0, 'eos_token_id': 1, 'bos_token_id': 2}


def _siglip2() -> Parts:
    tokenizer = _gemma_tokenizer()
    text = SMALL | {'vocab_size': len(tokenizer), 'max_position_embeddings': CONTEXT, 'projection_size': 32}
    vision = SMALL | {'patch_size': 8, 'num_patches': 16}
    config = transformers.Siglip2Config(text_config=text | _IDS, vision_config=vision)
    return (
        transformers.Siglip2Model(config),
        tokenizer,
        transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
    )


def _bert_tokenizer() -> Any:
    letters = string.ascii_lowercase
    pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *letters, *(f'##{letter}' for letter in letters)]
    pieces += [*'一只猫的照片', 'cat', 'dog']
    return transformers.BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=CONTEXT)


def _chinese() -> Parts:
    tokenizer = _bert_tokenizer()
    text = SMALL | {'vocab_size': len(tokenizer), 'max_position_embeddings': CONTEXT}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=DIMENSION)
    processor = transformers.ChineseCLIPImageProcessorPil(size={'height': SIDE, 'width': SIDE}, do_center_crop=False)
    return transformers.ChineseCLIPModel(config), tokenizer, processor


def _altclip() -> Parts:
    pieces = ['<s>', '<pad>', '</s>', '<unk>', '▁', *string.ascii_lowercase, '▁cat', '▁dog', '的']
    tokenizer = transformers.XLMRobertaTokenizer(
        vocab=[(piece, -float(n)) for n, piece in enumerate(pieces)], model_max_length=CONTEXT
    )
    # Positions are counted from behind the padding: two more than the context.
    text = SMALL | {'vocab_size': len(tokenizer), 'max_position_embeddings': CONTEXT + 2, 'project_dim': DIMENSION}
    config = transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=DIMENSION)
    return transformers.AltCLIPModel(config), tokenizer, transformers.CLIPImageProcessorPil(**CROP)


def _dual() -> Parts:
    tokenizer = _bert_tokenizer()
    text = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.CLIPVisionConfig(**VISION), text, projection_dim=DIMENSION
    )
    processor = transformers.CLIPImageProcessorPil(**CROP | {'size': {'shortest_edge': SIDE + 4}})
    return transformers.VisionTextDualEncoderModel(config), tokenizer, processor


FAMILIES: dict[str, Callable[[], Parts]] = {
    'clip': _clip,
    'clip-legacy': lambda: _clip(legacy=True),
    'siglip': _siglip,
    'siglip2': _siglip2,
    'chinese_clip': _chinese,
    'altclip': _altclip,
    'vision-text-dual-encoder': _dual,
}


def pad_above_the_end(directory: Path) -> Path:
    """Give a CLIP checkpoint a padding token, whose id is then the largest."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({'pad_token': '<pad>'})
    tokenizer.save_pretrained(directory)
    weights, name = load_file(directory / 'model.safetensors'), 'text_model.embeddings.token_embedding.weight'
    weights[name] = torch.cat([weights[name], -weights[name][-1:]])
    save_file(weights, directory / 'model.safetensors', metadata={'format': 'pt'})
    config = json.loads((directory / 'config.json').read_text())
    config['text_config']['vocab_size'] = len(weights[name])
    (directory / 'config.json').write_text(json.dumps(config))
    return directory


def build(family: str, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of this family into `directory`."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer, processor = FAMILIES[family]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            # The usual start is so near to nought that all inputs look alike.
            if weights.ndim > 1:
                weights.normal_(0, 0.2, generator=generator)
            if name == 'logit_scale':
                weights.fill_(LOG_SCALE)
    model.to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
