"""SpectralQuant inside serving engines: a store of packets, and thin adapters to the engines' own interfaces."""
