"""Measured studies: each writes one results file that the README's figures come from, and one command runs it again."""
