"""A state dict with OpenAI's key names to a directory in the Hugging Face format, for ViT models of CLIP.

    python benchmarks/convert_openai.py WEIGHTS.pt bpe_simple_vocab_16e6.txt.gz OUT [--activation gelu]

So clipflow can be measured with the very weights that a peer runs. The file with the byte pairs comes with open_clip.
"""

import argparse
import gzip
import json
import re
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig

_BLOCK = {
    'attn.out_proj': 'self_attn.out_proj',
    'ln_1': 'layer_norm1',
    'ln_2': 'layer_norm2',
    'mlp.c_fc': 'mlp.fc1',
    'mlp.c_proj': 'mlp.fc2',
}
_SINGLE = {
    'visual.conv1.weight': 'vision_model.embeddings.patch_embedding.weight',
    'visual.class_embedding': 'vision_model.embeddings.class_embedding',
    'visual.positional_embedding': 'vision_model.embeddings.position_embedding.weight',
    'visual.ln_pre.weight': 'vision_model.pre_layrnorm.weight',
    'visual.ln_pre.bias': 'vision_model.pre_layrnorm.bias',
    'visual.ln_post.weight': 'vision_model.post_layernorm.weight',
    'visual.ln_post.bias': 'vision_model.post_layernorm.bias',
    'visual.proj': 'visual_projection.weight',
    'token_embedding.weight': 'text_model.embeddings.token_embedding.weight',
    'positional_embedding': 'text_model.embeddings.position_embedding.weight',
    'ln_final.weight': 'text_model.final_layer_norm.weight',
    'ln_final.bias': 'text_model.final_layer_norm.bias',
    'text_projection': 'text_projection.weight',
    'logit_scale': 'logit_scale',
}
_TRANSPOSED = ('visual.proj', 'text_projection')


def convert(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under transformers' names."""
    found = {}
    for name, value in state.items():
        tensor = value.float()
        if name in _SINGLE:
            found[_SINGLE[name]] = tensor.T.contiguous() if name in _TRANSPOSED else tensor
            continue
        match = re.fullmatch(r'(visual\.)?transformer\.resblocks\.(\d+)\.(.+)', name)
        if match is None:
            continue  # sizes and buffers
        layer = f'{"vision" if match[1] else "text"}_model.encoder.layers.{match[2]}.'
        part = match[3]
        if part.startswith('attn.in_proj_'):
            for letter, third in zip('qkv', tensor.chunk(3), strict=True):
                found[f'{layer}self_attn.{letter}_proj.{part.removeprefix("attn.in_proj_")}'] = third.contiguous()
        else:
            stem, _, kind = part.rpartition('.')
            found[f'{layer}{_BLOCK[stem]}.{kind}'] = tensor
    return found


def write_tokenizer(pairs: Path, out: Path) -> None:
    """CLIP's byte-pair vocabulary, in the order in which its own tokenizer counts it."""
    lines = gzip.decompress(pairs.read_bytes()).decode('utf-8').split('\n')
    merges = lines[1 : 49152 - 256 - 2 + 1]
    printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
    words = letters + [letter + '</w>' for letter in letters] + [''.join(pair.split()) for pair in merges]
    words += ['<|startoftext|>', '<|endoftext|>']
    (out / 'vocab.json').write_text(json.dumps({word: place for place, word in enumerate(words)}), encoding='utf-8')
    (out / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges]) + '\n', encoding='utf-8')
    special = {'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>', 'unk_token': '<|endoftext|>'}
    settings = {'tokenizer_class': 'CLIPTokenizer', 'model_max_length': 77, 'pad_token': '<|endoftext|>', **special}
    (out / 'tokenizer_config.json').write_text(json.dumps(settings), encoding='utf-8')


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights', type=Path)
    parser.add_argument('pairs', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--activation', default='gelu', choices=('gelu', 'quick_gelu'))
    given = parser.parse_args()
    state = torch.load(given.weights, map_location='cpu', weights_only=True)
    width, patch = state['visual.conv1.weight'].shape[0], state['visual.conv1.weight'].shape[2]
    side = patch * round((state['visual.positional_embedding'].shape[0] - 1) ** 0.5)
    text_width = state['ln_final.weight'].shape[0]
    config = CLIPConfig(
        projection_dim=state['text_projection'].shape[1],
        vision_config=CLIPVisionConfig(
            hidden_size=width, patch_size=patch, image_size=side, hidden_act=given.activation,
            intermediate_size=4 * width, num_attention_heads=width // 64, num_hidden_layers=12,
        ).to_dict(),
        text_config=CLIPTextConfig(
            hidden_size=text_width, hidden_act=given.activation, intermediate_size=4 * text_width,
            num_attention_heads=text_width // 64, num_hidden_layers=12, eos_token_id=49407, bos_token_id=49406,
        ).to_dict(),
    )  # fmt: skip
    model = CLIPModel(config)
    missing, unexpected = model.load_state_dict(convert(state), strict=False)
    if unexpected or [name for name in missing if 'position_ids' not in name]:
        raise SystemExit(f'these weights are no ViT of CLIP: missing {missing[:5]}, unexpected {unexpected[:5]}')
    given.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(given.out)
    CLIPImageProcessorPil().save_pretrained(given.out)
    write_tokenizer(given.pairs, given.out)
    print(given.out)


if __name__ == '__main__':
    main()
