"""Tables and plots in the terminal."""
