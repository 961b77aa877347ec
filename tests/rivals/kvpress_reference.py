"""What kvpress keeps of a prompt: run by `make test-rivals` in kvpress's environment, read by `test_kvpress.py` in ours.

kvpress wants an older transformers than the toolkit, so both cannot run in one process; the weights travel in the file.

    python tests/rivals/kvpress_reference.py reference.pt
"""

import sys

import kvpress
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

LENGTH, AFTER = 420, 20
KEEPS = (0.25, 0.5, 0.8)
PRESSES = ("SnapKVPress", "StreamingLLMPress", "ObservedAttentionPress", "ExpectedAttentionPress")
CONFIG = {
    "vocab_size": 300, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024, "initializer_range": 0.3,
}  # fmt: skip


def kept_by(model, ids, press):
    """bool `[L, Hk, n]`: which of the whole cache's keys are in the pressed one; and the pressed cache."""
    whole, pressed = DynamicCache(), DynamicCache()
    model(ids[None], past_key_values=whole)
    with press(model):
        model(ids[None], past_key_values=pressed)
    out = []
    for full, some in zip(whole.layers, pressed.layers, strict=True):
        distance = torch.cdist(some.keys[0].double(), full.keys[0].double())
        assert float(distance.amin(-1).max()) < 1e-4, "pressed keys are keys of the whole cache"
        mask = torch.zeros(full.keys.shape[1:3], dtype=torch.bool)
        out.append(mask.scatter_(1, distance.argmin(-1), True))
    return torch.stack(out), pressed


@torch.no_grad()
def main(file):
    """Write model, prompt, what each press keeps of it, and the loss on what follows."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 300, (LENGTH + AFTER,), generator=torch.Generator().manual_seed(1))
    cases = {}
    for name in PRESSES:
        for keep in KEEPS:
            kept, cache = kept_by(model, ids[:LENGTH], getattr(kvpress, name)(compression_ratio=1 - keep))
            positions = torch.arange(LENGTH, len(ids))[None]
            logits = model(ids[None, LENGTH:], past_key_values=cache, position_ids=positions).logits[0].log_softmax(-1)
            nll = -logits[:-1].gather(1, ids[LENGTH + 1 :, None]).sum().item()
            cases[f"{name} {keep}"] = (kept, nll)
    torch.save({"config": CONFIG, "weights": model.state_dict(), "ids": ids, "length": LENGTH, "cases": cases}, file)


if __name__ == "__main__":
    main(sys.argv[1])
