"""Chunks of keys and values as serving engines' tiers hold them: nothing known but positions, each decodes by itself."""
