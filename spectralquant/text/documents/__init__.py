"""From what users have (chat logs, tables, archives of text) to documents."""
