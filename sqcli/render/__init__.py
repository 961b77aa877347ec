"""What results look like: tables, terminal plots, self-contained HTML."""
