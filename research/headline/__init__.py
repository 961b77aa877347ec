"""One table for a sceptic: model x text x method at equal quality, with own, general and foreign profiles."""
