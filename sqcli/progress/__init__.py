"""What is shown while a command works: a bar a stage, and how long all stages take."""
