"""The second stage of a cold block: what the code across layers leaves, coded head by head."""
