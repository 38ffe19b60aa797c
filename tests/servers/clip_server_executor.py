"""Runs in clip-as-service's environment: its CLIPEncoder from our file, with a tiny model instead of a download."""

import sys
from pathlib import Path

import torch
from clip_server.model import openclip_model
from clip_server.model.model import CLIP


def main() -> None:
    """Arguments: where to keep the weights, the Executor's file, its port."""
    weights, uses, port = sys.argv[1:]
    torch.manual_seed(0)
    vision = {'image_size': 224, 'layers': 1, 'width': 64, 'patch_size': 32}
    text = {'context_length': 77, 'vocab_size': 49408, 'width': 64, 'heads': 1, 'layers': 1}
    torch.save(CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).state_dict(), weights)
    openclip_model.download_model = lambda *_, **__: str(Path(weights))
    from jina_cli import main as jina

    sys.argv = ['jina', 'executor', '--native', '--uses', uses, '--host', '127.0.0.1', '--port', port]
    jina()


main()
